"""HTML that the server writes itself: the API's documentation, the explanation of a refusal, and the front page.

Plain documents with one style sheet of our own: no script, nothing from elsewhere, so the strictest content policy
holds. Every text is escaped, though all of it is ours. It knows the OpenAPI and AsyncAPI documents and the catalogue, not ASGI.
"""

from collections.abc import Iterable
from html import escape
from typing import Any

from gearlink.errors import Entry

Json = dict[str, Any]

STYLE = """\
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --accent: #0b6bcb; }
@media (prefers-color-scheme: dark) { :root { --accent: #7ab8ff; } }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, sans-serif; margin: 0 auto; max-width: 62rem; padding: 1.5rem; }
a { color: var(--accent); }
h1 { margin: 0 0 .5rem; } h2 { border-bottom: 1px solid var(--line); margin-top: 3rem; }
code, pre { font: .9em/1.5 ui-monospace, monospace; } pre { overflow-x: auto; }
section { border: 1px solid var(--line); border-radius: .5rem; margin: 1rem 0; padding: .75rem 1rem; }
h2 ~ h3 { margin-top: 2rem; }
section h3 { font-size: 1rem; margin: 0; } section h4 { font-size: .85rem; margin: .9rem 0 .2rem; }
.method { background: var(--soft); border-radius: .25rem; display: inline-block; min-width: 4.5rem; padding: 0 .4rem; }
.lock { float: right; font-size: .85rem; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; }
td, th { border-top: 1px solid var(--line); padding: .3rem .5rem; text-align: left; vertical-align: top; }
td:first-child { white-space: nowrap; }
nav ul { columns: 2; font-size: .9rem; list-style: none; padding: 0; }
@media (max-width: 40rem) { nav ul { columns: 1; } body { padding: .75rem; } }
"""


def docs(document: Json, socket: Json) -> str:
    """The whole documentation on one page: the REST calls (OpenAPI), the frames of the WebSocket (AsyncAPI), the forms."""
    info = document["info"]
    calls = [
        (path, method, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    parts = [f"<h1>{escape(info['title'])} API</h1><p>Version {escape(info['version'])} · "]
    parts.append('<a href="/api/openapi.json">OpenAPI document</a> of the REST calls · ')
    parts.append('<a href="/api/asyncapi.json">AsyncAPI document</a> of the <a href="#websocket">WebSocket</a></p>')
    parts += _paragraphs(info)
    parts.append("<nav><ul>")
    parts += [f'<li><a href="#{escape(call[2]["operationId"])}">{_signature(*call[:2])}</a></li>' for call in calls]
    parts.append("</ul></nav>")
    for tag in (tag["name"] for tag in document["tags"]):
        parts.append(f"<h2>{escape(tag.capitalize())}</h2>")
        parts += [_operation(*call) for call in calls if tag in call[2]["tags"]]
    parts += _websocket(socket)
    parts.append("<h2>Forms</h2>")
    schemas = socket["components"]["schemas"] | document["components"]["schemas"]
    parts += [_schema(name, schema) for name, schema in sorted(schemas.items())]
    return page(f"{info['title']} API", "".join(parts))


def problem(entry: Entry) -> str:
    """What a refusal means, at the address that its `type` names."""
    again = "Trying again later can help." if entry.retryable else "Trying the same again does not help."
    rows = [("HTTP status", str(entry.status)), ("Trying again", again)]
    if entry.close is not None:
        rows.append(("On a WebSocket", f"closes it with {entry.close}"))
    body = f"<h1><code>{escape(entry.code)}</code></h1><p>{escape(entry.title)}.</p>{_table(rows)}"
    return page(entry.code, body + '<p><a href="/api/docs">API documentation</a></p>')


def front() -> str:
    """What a browser finds at the server's own address."""
    body = (
        "<h1>GearLink</h1><p>This is a GearLink chat server, and it is running.</p>"
        "<p>You were given an invite? What stands behind <code>?invite=</code> in its link is the code: sign up with "
        "<code>gearlink chat signup --server …this address… --invite …the code… --phone …your number…</code></p>"
        '<p>Programs talk to it through its <a href="/api/docs">documented API</a>.</p>'
    )
    return page("GearLink", body)


def page(title: str, body: str) -> str:
    """A whole document. `body` is HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="robots" content="noindex">'
        f'<title>{escape(title)}</title><link rel="stylesheet" href="/api/docs.css"></head><body>{body}</body></html>\n'
    )


def _paragraphs(info: Json) -> list[str]:
    return [f"<p>{_prose(paragraph)}</p>" for paragraph in info["description"].split("\n\n")]


def _prose(text: str) -> str:
    """Escaped text; what stands between backticks is code."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces))


def _table(rows: Iterable[tuple[str, str]]) -> str:
    cells = [f"<tr><td>{_prose(left)}</td><td>{_prose(right)}</td></tr>" for left, right in rows]
    return f"<table>{''.join(cells)}</table>"


def _signature(path: str, method: str) -> str:
    return f'<code><span class="method">{escape(method.upper())}</span> {escape(path)}</code>'


def _operation(path: str, method: str, operation: Json) -> str:
    who = "signed in" if operation["security"] else "anybody"
    parts = [f'<section id="{escape(operation["operationId"])}"><span class="lock">{who}</span>']
    parts.append(f"<h3>{_signature(path, method)}</h3><p>{_prose(operation['summary'])}.</p>")
    if parameters := operation.get("parameters"):
        rows = [(f"`{each['name']}` in {each['in']}", _parameter(each)) for each in parameters]
        parts.append(f"<h4>Parameters</h4>{_table(rows)}")
    if "requestBody" in operation:
        parts.append(f"<h4>Body</h4><p>{_shape(_media(operation['requestBody']))}</p>")
    parts.append("<h4>Answers</h4><table>")
    for status, answer in operation["responses"].items():
        shape = "" if "application/problem+json" in answer.get("content", {}) else _shape(_media(answer))
        parts.append(f"<tr><td>{escape(status)}</td><td>{_prose(answer['description'])} {shape}</td></tr>")
    return "".join([*parts, "</table></section>"])


def _websocket(socket: Json) -> list[str]:
    """What clients say, what the server tells by itself, and why it closes."""
    said = {name: each for name, each in socket["operations"].items() if each["action"] == "receive"}
    told = {name: each for name, each in socket["operations"].items() if each["action"] == "send"}
    parts = ['<h2 id="websocket">WebSocket</h2>', *_paragraphs(socket["info"]), "<nav><ul>"]
    parts += [
        f'<li><a href="#{escape(name)}"><code>{escape(each["title"])}</code></a></li>' for name, each in said.items()
    ]
    parts.append("</ul></nav><h3>What a client says</h3>")
    parts += [_frame(name, each) for name, each in said.items()]
    parts.append("<h3>What the server tells</h3><table>")
    for name, each in told.items():
        form, frame = escape(_form(each["messages"][0])), f"<code>{escape(each['title'])}</code>"
        link = f'<a id="{escape(name)}" href="#form-{form}">{frame}</a>'
        parts.append(f"<tr><td>{link}</td><td>{_prose(each['summary'])}</td></tr>")
    codes = socket["channels"]["socket"]["x-close-codes"]
    return [*parts, f"</table><h3>Close codes</h3>{_table(codes.items())}"]


def _frame(name: str, operation: Json) -> str:
    """One frame of a client: its fields, the right that it needs, the answer, and why it may be refused."""
    lock = f'<span class="lock">right: {escape(operation["x-right"])}</span>' if "x-right" in operation else ""
    answer, _error = (_form_link(message) for message in operation["reply"]["messages"])
    refusals = ", ".join(f'<a href="/problems/{each}"><code>{each}</code></a>' for each in operation["x-refusals"])
    return (
        f'<section id="{escape(name)}">{lock}<h3><code>{escape(operation["title"])}</code></h3>'
        f"<p>{_prose(operation['summary'])}.</p><table>"
        f"<tr><td>Fields</td><td>{_form_link(operation['messages'][0])}</td></tr>"
        f"<tr><td>Answer</td><td>{answer}</td></tr><tr><td>Refusals</td><td>{refusals}</td></tr></table></section>"
    )


def _form(message: Json) -> str:
    """The name of a message's form: that of the message, as `asyncapi` has it."""
    return str(message["$ref"].rpartition("/")[2])


def _form_link(message: Json) -> str:
    return _shape({"$ref": f"#/components/schemas/{_form(message)}"})


def _parameter(parameter: Json) -> str:
    required = "required" if parameter["required"] else "optional"
    about = f"; {parameter['description']}" if "description" in parameter else ""
    return f"{_limits(parameter['schema'])}; {required}{about}"


def _media(holder: Json) -> Json:
    schema: Json = holder.get("content", {}).get("application/json", {}).get("schema", {})
    return schema


def _shape(schema: Json) -> str:
    """The type of a value, linked to its form."""
    if not schema:
        return ""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#form-{escape(name)}"><code>{escape(name)}</code></a>'
    if "anyOf" in schema:
        return " or ".join(_shape(choice) for choice in schema["anyOf"])
    if schema.get("type") == "array" and "items" in schema:
        return f"list of {_shape(schema['items'])}"
    return f"<code>{escape(_limits(schema))}</code>"


def _limits(schema: Json) -> str:
    """The type of a simple value with its bounds, as text."""
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    names = {"minimum": "≥", "maximum": "≤", "minLength": "length ≥", "maxLength": "length ≤", "default": "default"}
    bounds = [f"{word} {schema[key]}" for key, word in names.items() if key in schema]
    return " ".join([schema.get("format") or schema.get("type", "any"), *bounds])


def _schema(name: str, schema: Json) -> str:
    parts = [f'<section id="form-{escape(name)}"><h3><code>{escape(name)}</code></h3>']
    if "description" in schema:
        parts.append(f"<p>{_prose(schema['description'])}</p>")
    parts.append("<table>")
    for key, field in schema.get("properties", {}).items():
        mark = "" if key in schema.get("required", ()) else " (optional)"
        parts.append(f"<tr><td><code>{escape(key)}</code>{mark}</td><td>{_shape(field)}</td></tr>")
    return "".join([*parts, "</table></section>"])
