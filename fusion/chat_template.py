"""A chat template of the user's own, for a model whose files have none, or another one.

A template is Jinja as transformers renders it; the model under it is the same weights in a folder of links.
"""

from __future__ import annotations

import json
from pathlib import Path

from fusion.checkpoints import Checkpoint, whole_folder
from fusion.errors import RecipeError

FILE = "chat_template.jinja"
_SAID = "Is this said?"


def read_template(file: Path) -> str:
    """Return the chat template in a file.

    RecipeError where there is no such file, where it is no Jinja, or where it leaves out what the user says.
    """
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the chat template {file} cannot be read ({error}); give a text file of Jinja") from None
    chat = [{"role": "user", "content": _SAID}]
    try:
        [said], _ = render_jinja_template(
            [chat], chat_template=text, add_generation_prompt=True, bos_token="", eos_token=""
        )
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise RecipeError(f"{file} is no chat template that transformers can render ({error}{line}); mend it") from None
    if _SAID not in said:
        raise RecipeError(
            f"the chat template {file} leaves out what the user says: write the messages' content, "
            "{% for message in messages %}{{ message['content'] }}{% endfor %}"
        )
    return text


def with_template(model: Path, template: str, folder: Path) -> None:
    """Make ``folder`` the checkpoint in ``model`` under another chat template; its large files are links."""
    Checkpoint(model)  # its files are there and whole
    with whole_folder(folder) as work:
        for file in sorted(model.iterdir()):
            if not file.name.startswith("chat_template") and file.name != "additional_chat_templates":
                (work / file.name).symlink_to(file.resolve())
        config = work / "tokenizer_config.json"
        if config.exists():
            told = json.loads(config.read_text(encoding="utf-8"))
            if told.pop("chat_template", None) is not None:
                config.unlink()
                config.write_text(json.dumps(told, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        (work / FILE).write_text(template, encoding="utf-8")
