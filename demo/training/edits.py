"""Prompts with the pictures they start from and the one picture they ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from .scenes import (
    COLORS,
    PLACES,
    RADII,
    SETTLED_RADIUS,
    SHAPES,
    TEXTURES,
    Draw,
    Scene,
    Thing,
    fits,
    place,
    settled_texture,
    stands_out,
    wearing,
)

ONE_REFERENCE = ("recolor", "texture", "remove", "add", "move", "background")
STEP = 0.25  # that a thing is moved, in shorter sides
WAYS = {"up": (0, -STEP), "down": (0, STEP), "left": (-STEP, 0), "right": (STEP, 0)}
WAYS |= {f"to the {side}": WAYS[side] for side in ("left", "right")}
KINDS = {0: ("paint",), 1: ONE_REFERENCE, 2: ("combine two",), 3: ("combine three",)}  # by number of references


@dataclass(frozen=True)
class Edit:
    """A prompt, the scenes of its reference pictures and the scene that is right.

    All but `paint` have one right result: what a prompt leaves open (radius, texture, angle) is settled.
    """

    prompt: str
    references: tuple[Scene, ...]
    result: Scene


class NoRoomError(Exception):
    """This draw has no place for the edit; draw again."""


def random_edit(kind: str, rng: Random, width: float = 1.0, height: float = 1.0) -> Edit:
    """An edit of a kind in KINDS on a picture of these sides, the shorter 1."""
    draw = Draw(rng, width, height)
    while True:
        try:
            return _MAKERS[kind](draw)
        except NoRoomError:
            continue


def _recolor(draw: Draw) -> Edit:
    scene, thing = _scene_and_thing(draw)
    color = draw.color(scene.color, thing.color)
    it = _name(draw, thing)
    prompt = draw.rng.choice(
        (f"make {it} {color}", f"change {it} to {color}", f"turn {it} {color}", f"change the color of {it} to {color}")
    )
    return Edit(prompt, (scene,), _swap(scene, thing, replace(thing, color=color)))


def _texture(draw: Draw) -> Edit:
    scene, thing = _scene_and_thing(draw)
    kind = draw.rng.choice([kind for kind in TEXTURES if kind != thing.texture.kind])
    it = _name(draw, thing)
    prompt = draw.rng.choice((f"make {it} {kind}", f"turn {it} {kind}", f"change the texture of {it} to {kind}"))
    return Edit(prompt, (scene,), _swap(scene, thing, wearing(thing, kind)))


def _remove(draw: Draw) -> Edit:
    scene, thing = _scene_and_thing(draw)
    it = _name(draw, thing)
    prompt = draw.rng.choice((f"remove {it}", f"take {it} away"))
    return Edit(prompt, (scene,), replace(scene, things=scene.without(thing.shape)))


def _add(draw: Draw) -> Edit:
    scene = draw.scene(draw.rng.randint(0, 2))
    shape = draw.rng.choice([shape for shape in SHAPES if all(shape != thing.shape for thing in scene.things)])
    size, kind, where = draw.rng.choice(list(RADII)), draw.rng.choice(TEXTURES), draw.rng.choice(list(PLACES))
    x, y = place(where, scene.width, scene.height)
    thing = wearing(Thing(shape, draw.color(scene.color), x, y, SETTLED_RADIUS[size]), kind)
    if not fits(thing, scene.things):
        raise NoRoomError
    what = f"a {size} {thing.color} {_plain_is_silent(kind)}{shape}"
    prompt = draw.rng.choice((f"add {what} in the {where}", f"put {what} in the {where}"))
    return Edit(prompt, (scene,), replace(scene, things=(*scene.things, thing)))


def _move(draw: Draw) -> Edit:
    scene, thing = _scene_and_thing(draw)
    way = draw.rng.choice(list(WAYS))
    x, y = WAYS[way]
    moved = replace(thing, x=thing.x + x, y=thing.y + y)
    others = scene.without(thing.shape)
    if not fits(moved, others) or not draw.holds(moved):
        raise NoRoomError
    return Edit(f"move {_name(draw, thing)} {way}", (scene,), replace(scene, things=(*others, moved)))


def _background(draw: Draw) -> Edit:
    scene = draw.scene(draw.rng.randint(1, 3))
    if draw.rng.random() < 0.6:
        word = draw.color(scene.color, *(thing.color for thing in scene.things))
        result = replace(scene, color=word)
    else:
        word = draw.rng.choice([kind for kind in TEXTURES if kind != scene.texture.kind])
        result = replace(scene, texture=settled_texture(word))
    prompt = draw.rng.choice(
        (f"make the background {word}", f"change the background to {word}", f"turn the background {word}")
    )
    return Edit(prompt, (scene,), result)


def _combine_two(draw: Draw) -> Edit:
    first = draw.scene(draw.rng.randint(1, 3))
    if draw.rng.random() < 0.3:
        second = draw.scene(draw.rng.randint(1, 3))
        return Edit(_background_prompt(draw, 2), (first, second), _on_background(first, second))
    second, thing = _donor(draw, first)
    prompt = f"put {_name(draw, thing)} {_from(draw, 2)} into {_image(draw, 1)}"
    return Edit(prompt, (first, second), replace(first, things=(*first.things, thing)))


def _combine_three(draw: Draw) -> Edit:
    first = draw.scene(draw.rng.randint(1, 2))
    second, thing = _donor(draw, first)
    result = replace(first, things=(*first.things, thing))
    prompt = f"put {_name(draw, thing)} {_from(draw, 2)}"
    if draw.rng.random() < 0.3:
        third = draw.scene(draw.rng.randint(1, 3))
        prompt += f" into {_image(draw, 1)} and {_background_prompt(draw, 3)}"
        return Edit(prompt, (first, second, third), _on_background(result, third))
    third, other = _donor(draw, result)
    prompt += f" and {_name(draw, other)} {_from(draw, 3)} into {_image(draw, 1)}"
    return Edit(prompt, (first, second, third), replace(result, things=(*result.things, other)))


def _paint(draw: Draw) -> Edit:
    """Text to image: the words fix less than the picture shows."""
    rng = draw.rng
    color, background = rng.choice(list(COLORS)), draw.background_texture()
    wheres = rng.sample(list(PLACES), rng.randint(0, 3))
    shapes = rng.sample(SHAPES, len(wheres))
    things: list[Thing] = []
    words = []
    for where, shape in zip(wheres, shapes, strict=True):
        size, texture = rng.choice(list(RADII)), draw.texture()
        x, y = (c + rng.uniform(-0.03, 0.03) for c in place(where, draw.width, draw.height))
        thing = Thing(shape, draw.color(color), x, y, rng.uniform(*RADII[size]), rng.uniform(-0.25, 0.25), texture)
        if not fits(thing, things):
            raise NoRoomError
        things.append(thing)
        words.append(f"a {size} {thing.color} {_plain_is_silent(texture.kind)}{shape} in the {where}")
    ground = f"a {color} {_plain_is_silent(background.kind)}background"
    prompt = " and ".join(words) + " on " + ground if words else ground
    return Edit(prompt, (), Scene(color, background, tuple(things), draw.width, draw.height))


def _plain_is_silent(kind: str) -> str:
    return "" if kind == "plain" else f"{kind} "


def _scene_and_thing(draw: Draw) -> tuple[Scene, Thing]:
    scene = draw.scene(draw.rng.randint(1, 3))
    return scene, draw.rng.choice(scene.things)


def _swap(scene: Scene, old: Thing, new: Thing) -> Scene:
    return replace(scene, things=tuple(new if thing is old else thing for thing in scene.things))


def _donor(draw: Draw, receiver: Scene) -> tuple[Scene, Thing]:
    """A second picture and a thing in it that the receiver can take, standing out and hiding nothing."""
    scene, thing = _scene_and_thing(draw)
    known = {t.shape for t in receiver.things}
    if thing.shape in known or not stands_out(thing.color, receiver.color) or not fits(thing, receiver.things):
        raise NoRoomError
    return scene, thing


def _on_background(scene: Scene, donor: Scene) -> Scene:
    if not all(stands_out(thing.color, donor.color) for thing in scene.things):
        raise NoRoomError
    return replace(scene, color=donor.color, texture=donor.texture)


def _background_prompt(draw: Draw, number: int) -> str:
    return f"use the background {_from(draw, number)}"


def _name(draw: Draw, thing: Thing) -> str:
    return f"the {thing.color} {thing.shape}" if draw.rng.random() < 0.25 else f"the {thing.shape}"


def _from(draw: Draw, number: int) -> str:
    return f"from {_image(draw, number)}"


def _image(draw: Draw, number: int) -> str:
    ordinal = ("first", "second", "third")[number - 1]
    return draw.rng.choice((f"the {ordinal} image", f"the {ordinal} image", f"image {number}"))


_MAKERS: dict[str, Callable[[Draw], Edit]] = {
    "paint": _paint,
    "recolor": _recolor,
    "texture": _texture,
    "remove": _remove,
    "add": _add,
    "move": _move,
    "background": _background,
    "combine two": _combine_two,
    "combine three": _combine_three,
}
