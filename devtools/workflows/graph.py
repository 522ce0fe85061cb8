"""A workflow as nodes, groups and notes; out of it come the graph editor's JSON and its twin for the HTTP API."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
SHOWN_ONLY = ("IMAGECOMPARE",)  # a view on the node, nothing to set
AUTOGROW = "COMFY_AUTOGROW_V3"
OPTIONAL = 7  # the editor's shape of such a socket
NAMESPACE = uuid.UUID("5d0e5c1e-4b0c-4d7e-9a55-6f5a6c1b7d00")
TITLE, SLOT, WIDGET, GAP, EDGE = 30, 20, 24, 30, 20  # pixels
MULTILINE, PICTURE, BADGE = 100, 220, 20  # what such a widget, a picture, and text under a node take
PICTURES, TELLING = ("LoadImage", "SaveImage", "PreviewImage"), ("KontextTier", "KontextOptimize")
COLORS = {"blue": "#3f789e", "green": "#8A8", "amber": "#b58b2a", "purple": "#a1309b"}


@dataclass(frozen=True)
class Output:
    """What a link starts from."""

    node: Node
    index: int


@dataclass
class Node:
    """info: what ComfyUI's /object_info says of its kind. inputs: values and Outputs, by name. after: of its seed."""

    id: int
    kind: str
    info: Json
    inputs: dict[str, Any]
    title: str = ""
    after: str = "fixed"
    models: Sequence[Json] = ()
    width: int = 300
    height: int | None = None
    pos: tuple[int, int] = (0, 0)

    def __getitem__(self, name: str) -> Output:
        return Output(self, self.info["output_name"].index(name))

    def declared(self) -> Iterator[tuple[str, Any, Json, bool]]:
        """(name, type, options, optional) of every input; an autogrow one is as many as are linked, and one more."""
        for part in ("required", "optional"):
            for name, (kind, *rest) in self.info["input"].get(part, {}).items():
                options = rest[0] if rest else {}
                if kind in SHOWN_ONLY:
                    continue
                if kind != AUTOGROW:
                    yield name, kind, options, part == "optional"
                    continue
                template = options["template"]
                ((kind, more),) = template["input"]["required"].values()
                n = sum(given.startswith(f"{name}.") for given in self.inputs)
                for i in range(n + 1):
                    yield f"{name}.{template['prefix']}{i}", kind, more, i >= template["min"]

    def values(self) -> dict[str, Any]:
        """{name: value or Output} of every widget and every linked socket."""
        values = {}
        for name, kind, options, _ in self.declared():
            if name in self.inputs:
                values[name] = self.inputs[name]
            elif is_widget(kind):
                values[name] = default(kind, options)
        unknown = self.inputs.keys() - values.keys()
        if unknown:
            raise ValueError(f"{self.kind} has no input {', '.join(sorted(unknown))}")
        return values

    def size(self) -> list[int]:
        """Width and height in the editor."""
        if self.height is not None:
            return [self.width, self.height]
        inputs = list(self.declared())
        sockets = sum(not is_widget(kind) for _, kind, _, _ in inputs)
        widgets = [options for _, kind, options, _ in inputs if is_widget(kind)]
        height = SLOT * max(sockets, len(self.info["output"])) + WIDGET * len(widgets) + 10
        height += WIDGET * sum(bool(options.get("control_after_generate")) for options in widgets)
        height += MULTILINE * sum(bool(options.get("multiline")) for options in widgets)
        height += PICTURE * (self.kind in PICTURES) + 10 * BADGE * (self.kind in TELLING)
        return [self.width, height]


@dataclass
class Group:
    """A titled box of nodes, one below the other."""

    title: str
    color: str
    column: int
    nodes: list[Node] = field(default_factory=list)

    def place(self, x: int, y: int) -> list[int]:
        """Gives its nodes their places; its own [x, y, width, height]."""
        width, top = max(node.width for node in self.nodes), y + TITLE + 40
        for node in self.nodes:
            node.pos = (x + EDGE, top)
            top += node.size()[1] + TITLE + GAP
        return [x, y, width + 2 * EDGE, top - y - TITLE]


class Graph:
    """Nodes are added to the group that was begun last."""

    def __init__(self, name: str, infos: Mapping[str, Json]):
        self.name, self.infos = name, infos
        self.groups: list[Group] = []
        self.nodes: list[Node] = []

    def group(self, title: str, color: str, column: int) -> None:
        """Begins a group in a column, below those that are there."""
        self.groups.append(Group(title, COLORS[color], column))

    def node(self, kind: str, /, **inputs: Any) -> Node:
        """A node with its inputs by name, `__` in a name standing for a dot.

        title, after, models, width_px and height_px are Node's own.
        """
        own: dict[str, Any] = {key: inputs.pop(key) for key in ("title", "after", "models") if key in inputs}
        own |= {key: inputs.pop(f"{key}_px") for key in ("width", "height") if f"{key}_px" in inputs}
        given = {name.replace("__", "."): value for name, value in inputs.items()}
        node = Node(len(self.nodes) + 1, kind, self.infos[kind], given, **own)
        self.nodes.append(node)
        self.groups[-1].nodes.append(node)
        return node

    def note(self, text: str, width: int = 420, height: int = 330) -> None:
        """Markdown for who opens it."""
        info = {"input": {"required": {"": ["STRING", {}]}}, "output": [], "output_name": []}
        note = Node(len(self.nodes) + 1, "MarkdownNote", info, {"": text}, "How to use", width=width, height=height)
        self.nodes.append(note)
        self.groups[-1].nodes.append(note)

    def api(self) -> Json:
        """{node id: class_type and inputs}, as the HTTP API takes it."""
        nodes = {}
        for node in self.nodes:
            if node.kind == "MarkdownNote":
                continue
            inputs = {
                name: [str(value.node.id), value.index] if isinstance(value, Output) else value
                for name, value in node.values().items()
            }
            nodes[str(node.id)] = {"class_type": node.kind, "inputs": inputs}
        return nodes

    def editor(self) -> Json:
        """As the graph editor saves it."""
        bounds, x = [], 20
        for column in sorted({group.column for group in self.groups}):
            y, right = 20, x
            for group in (each for each in self.groups if each.column == column):
                bounds.append((group, box := group.place(x, y)))
                y, right = y + box[3] + GAP, max(right, x + box[2])
            x = right + GAP
        links: list[list[Any]] = []
        starts: dict[tuple[int, int], list[int]] = {}
        shown = {node.id: self._shown_inputs(node, links, starts) for node in self.nodes}
        return {
            "id": str(uuid.uuid5(NAMESPACE, self.name)),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(links),
            "nodes": [self._shown(node, i, shown[node.id], starts) for i, node in enumerate(self.nodes)],
            "links": links,
            "groups": [
                {"id": i, "title": group.title, "bounding": box, "color": group.color, "flags": {}}
                for i, (group, box) in enumerate(bounds, 1)
            ],
            "config": {},
            "extra": {"ds": {"scale": 0.7, "offset": [60, 60]}},
            "version": 0.4,
        }

    def _shown_inputs(self, node: Node, links: list[list[Any]], starts: dict[tuple[int, int], list[int]]) -> list[Json]:
        """The sockets, then the widgets; links are added to `links` and `starts`."""
        inputs: list[Json] = []
        for name, kind, _, optional in sorted(node.declared(), key=lambda each: is_widget(each[1])):
            if not name:  # a note's text
                continue
            kind = "COMBO" if isinstance(kind, list) else kind
            shown: Json = {"name": name, "type": kind, "link": None}
            if "." in name:
                shown["label"] = name.partition(".")[2]
            if is_widget(kind):
                shown["widget"] = {"name": name}
            if optional:
                shown["shape"] = OPTIONAL
            value = node.inputs.get(name)
            if isinstance(value, Output):
                shown["link"] = len(links) + 1
                of = value.node.info["output"][value.index]
                of = "COMBO" if isinstance(of, list) else of
                links.append([len(links) + 1, value.node.id, value.index, node.id, len(inputs), of])
                starts.setdefault((value.node.id, value.index), []).append(len(links))
            inputs.append(shown)
        if node.kind == "LoadImage":
            inputs.append({"name": "upload", "type": "IMAGEUPLOAD", "widget": {"name": "upload"}, "link": None})
        return inputs

    def _shown(self, node: Node, order: int, inputs: list[Json], starts: dict[tuple[int, int], list[int]]) -> Json:
        outputs = [
            {"name": name, "type": "COMBO" if isinstance(kind, list) else kind, "links": starts.get((node.id, i), [])}
            for i, (name, kind) in enumerate(zip(node.info["output_name"], node.info["output"], strict=True))
        ]
        properties: Json = {} if node.kind == "MarkdownNote" else {"Node name for S&R": node.kind}
        if node.models:
            properties["models"] = list(node.models)
        shown = {"id": node.id, "type": node.kind, "pos": list(node.pos), "size": node.size(), "flags": {}}
        shown |= {"order": order, "mode": 0, "inputs": inputs, "outputs": outputs, "properties": properties}
        shown["widgets_values"] = list(_widgets_values(node))
        if node.title:
            shown["title"] = node.title
        if node.kind == "MarkdownNote":
            shown |= {"color": "#432", "bgcolor": "#653"}
        return shown


def _widgets_values(node: Node) -> Iterator[Any]:
    """In the editor's order; a linked widget keeps its default."""
    for name, kind, options, _ in node.declared():
        if not is_widget(kind):
            continue
        value = node.inputs.get(name)
        yield default(kind, options) if value is None or isinstance(value, Output) else value
        if options.get("control_after_generate"):
            yield node.after
        if options.get("image_upload"):
            yield "image"


def is_widget(kind: Any) -> bool:
    """Whether an input of this type is one that is typed or chosen on the node."""
    return isinstance(kind, list) or kind in WIDGETS


def default(kind: Any, options: Json) -> Any:
    """What the editor puts there."""
    choices = kind if isinstance(kind, list) else options.get("options")
    if "default" in options:
        return options["default"]
    if choices:
        return choices[0]
    return {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False}.get(kind, "")


def as_lines(workflow: Json) -> str:
    """JSON with a line for each node, link and group, in either format."""
    if "nodes" not in workflow:
        rows = [f"  {json.dumps(name)}: {json.dumps(node)}" for name, node in workflow.items()]
        return "{\n" + ",\n".join(rows) + "\n}\n"
    lines = []
    for key, value in workflow.items():
        if key in ("nodes", "links", "groups"):
            block = ",\n".join(f"  {json.dumps(each)}" for each in value)
            lines.append(f' "{key}": [\n{block}\n ]')
        else:
            lines.append(f' "{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"
