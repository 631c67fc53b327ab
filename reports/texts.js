// What models and judges wrote, as elements. Markdown is read by markdown-it, formulas are set by KaTeX as MathML, and
// DOMPurify lets through these elements and attributes alone; everything else enters the page as text nodes.

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children); // strings become text nodes
  return made;
}

// Marks that reorder or hide what follows are written out, so that nothing reads otherwise than it is.
const UNSEEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e0fff}]/gu;

function visible(text) {
  return text.replace(UNSEEN, (mark) => `⟨U+${mark.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
}

const LONG = 40000; // characters; a longer text is shown as it was written, and a part of it first
const FORMULA = 2000; // characters of the longest formula: without a bound, reading hostile text takes quadratic time
const DELIMITERS = [["$$", "$$", true], ["\\[", "\\]", true], ["\\(", "\\)", false], ["$", "$", false]];

// Where a formula that opens at `from` ends, or -1. A dollar that could be money opens none.
function closing(text, from, close) {
  const to = text.slice(from, from + FORMULA).search(close === "$" ? /(?<!\\)\$/ : close === "$$" ? /\$\$/ : close === "\\]" ? /\\\]/ : /\\\)/);
  if (to < 1 || /\n\s*\n/.test(text.slice(from, from + to))) return -1;
  if (close === "$" && (/^\s|\s$/.test(text.slice(from, from + to)) || /^\d/.test(text.slice(from + to + 1)))) return -1;
  return from + to;
}

function inlineMath(state, silent) {
  for (const [open, close, display] of DELIMITERS) {
    if (!state.src.startsWith(open, state.pos)) continue;
    const from = state.pos + open.length;
    const to = closing(state.src, from, close);
    if (to < 0) continue;
    if (!silent) Object.assign(state.push("math", "", 0), { content: state.src.slice(from, to), meta: { display } });
    state.pos = to + close.length;
    return true;
  }
  return false;
}

// A formula on lines of its own, whose lines may look like lists or headings.
function blockMath(state, first, end, silent) {
  const begin = state.bMarks[first] + state.tShift[first];
  const found = DELIMITERS.find(([open, , display]) => display && state.src.startsWith(open, begin));
  if (!found) return false;
  const from = begin + found[0].length;
  const to = closing(state.src, from, found[1]);
  if (to < 0) return false;
  let last = first;
  while (last < end && state.eMarks[last] < to) last += 1;
  if (last >= end || state.src.slice(to + 2, state.eMarks[last]).trim()) return false;
  if (!silent) Object.assign(state.push("math", "", 0), { block: true, content: state.src.slice(from, to), meta: { display: true } });
  state.line = last + 1;
  return true;
}

let reader; // made when the first text is read: a page without answers has no libraries

function markdown() {
  return reader ??= newReader();
}

function newReader() {
  const made = markdownit({ maxNesting: 30 }).disable("image");
  made.inline.ruler.before("escape", "math", inlineMath);
  made.block.ruler.before("fence", "math", blockMath, { alt: ["paragraph", "list", "blockquote"] });
  Object.assign(made.renderer.rules, {
    math(tokens, at) {
      const { content, meta } = tokens[at];
      const options = { displayMode: meta.display, output: "mathml", throwOnError: false, strict: "ignore", maxExpand: 100, maxSize: 10 };
      const set = katex.renderToString(content, options);
      return meta.display ? `<span class="display">${set}</span>` : set;
    },
    heading_open: (tokens, at) => `<p class="heading ${tokens[at].tag}">`, // the page's own headings stay the only ones
    heading_close: () => "</p>",
    // A link of a model leads nowhere: its address is written out.
    link_open: () => '<span class="link">',
    link_close(tokens, at) {
      const opened = tokens.slice(0, at).findLast((token) => token.type === "link_open");
      return opened.markup === "autolink" ? "</span>" : `</span> <code>${made.utils.escapeHtml(opened.attrGet("href"))}</code>`;
    },
  });
  return made;
}

const ALLOWED = {
  ALLOWED_TAGS: ("p br hr em strong s ul ol li blockquote pre code table thead tbody tr th td span " +
    "math semantics annotation mrow mi mo mn ms mtext mspace msup msub msubsup mfrac msqrt mroot munder mover " +
    "munderover mtable mtr mtd mstyle mpadded menclose mmultiscripts").split(" "),
  ALLOWED_ATTR: ("class start display mathvariant stretchy fence separator accent accentunder columnalign rowspacing " +
    "columnspacing columnlines rowlines scriptlevel displaystyle linethickness minsize maxsize lspace rspace width " +
    "height depth voffset notation encoding xmlns").split(" "),
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

// A text as one element: as Markdown, or as it was written.
function shownText(text, { asWritten = false } = {}) {
  const safe = visible(text);
  if (!asWritten && safe.length <= LONG) {
    try {
      const clean = DOMPurify.sanitize(markdown().render(safe), ALLOWED);
      const texts = document.createTreeWalker(clean, NodeFilter.SHOW_TEXT);
      while (texts.nextNode()) { // what stood in the text as entities; formulas need a mark of their own
        if (!texts.currentNode.parentElement?.closest("math")) texts.currentNode.data = visible(texts.currentNode.data);
      }
      const made = element("div", "text rich", clean);
      made.dir = "auto";
      return made;
    } catch { /* what no parser can read is shown as it was written */ }
  }
  return plainText(safe, "div", "text written");
}

function plainText(safe, tag, className) {
  const made = element(tag, className, safe.slice(0, LONG));
  made.dir = "auto";
  if (safe.length > LONG) {
    const more = element("button", "more", `Show all ${safe.length.toLocaleString("en")} characters`);
    more.type = "button";
    more.addEventListener("click", () => made.replaceChildren(safe));
    made.append(" ", more);
  }
  return made;
}
