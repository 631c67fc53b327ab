// The texts of questions: gzipped JSON in base64, in the page or, where it is too much for one, in files beside it.

const PART = /^(answers|replies)-[0-9a-f]{16}$/;
const arrived = new Map(); // what a file beside the page brought, by name
const opened = new Map(); // promises of parts, by name; a few are kept

globalThis.fusevalPart = (name, text) => arrived.set(name, text);

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

// A page opened from disk may fetch nothing, so a file beside it is a script that hands over one string.
const scripts = globalThis.trustedTypes?.createPolicy("fuseval", {
  createScriptURL(name) {
    if (!PART.test(name)) throw new TypeError(`no part of this page: ${name}`);
    return partUrl(name);
  },
}) ?? { createScriptURL: partUrl };

function partUrl(name) {
  return `${encodeURIComponent(document.body.dataset.parts)}/${name}.js`;
}

async function beside(name) {
  await new Promise((resolve, reject) => {
    const script = element("script", "");
    script.src = scripts.createScriptURL(name);
    script.onload = resolve;
    script.onerror = () => reject(new Error(`${document.body.dataset.parts}/${name}.js is not beside this page`));
    document.head.append(script);
  });
  const text = arrived.get(name);
  arrived.delete(name);
  if (text === undefined || !await matches(name, text)) throw new Error(`${name}.js is not of this page`);
  return text;
}

async function matches(name, text) { // the name ends in the first digits of the text's SHA-256
  if (!globalThis.crypto?.subtle) return true;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text)));
  return name.endsWith([...digest.subarray(0, 8)].map((byte) => byte.toString(16).padStart(2, "0")).join(""));
}

function part(name) {
  if (!opened.has(name)) {
    const inline = document.getElementById(name);
    const found = (inline ? Promise.resolve(inline.textContent) : beside(name)).then(unpacked);
    found.catch(() => opened.delete(name));
    opened.set(name, found);
    if (opened.size > 8) opened.delete(opened.keys().next().value);
  }
  return opened.get(name);
}
