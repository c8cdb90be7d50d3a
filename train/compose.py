"""Composed clips with known happenings: things enter, stay, drift, grow, leave and are swapped; photographs
follow each other by hard cuts; still scenes; footage; and clips in which nothing is to be said.

`compose(media, seed)` is the same for the same media and seed. Frames come at `FPS`, `SIZE` x `SIZE`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from stream.sources.square import pad_to_square
from train.media import CutOut, Media, Photograph

Place = Literal["left", "middle", "right"]
PLACES: tuple[Place, ...] = ("left", "middle", "right")
FPS = 2.0
SIZE = 288  # pixels, the side that the default model sees
FEWEST, MOST = 12, 22  # frames of a clip
GLIMPSES = 80  # frames of an album
CHANGE = 2  # frames in which a change is seen: one before it, one behind it
SPACING = 4  # frames between two moments at which something happens
CARD_SHARE = 0.5  # of the things in a scene: photographs with soft edges instead of cut-outs


@dataclass(frozen=True)
class Sight:
    """Something seen in a frame, and in which third of it its middle lies."""

    name: str
    place: Place


@dataclass(frozen=True)
class Happening:
    """Something that is to be said. `time` is that of the first frame in which it is plainly seen or gone."""

    time: float
    kind: Literal["appears", "leaves"]
    name: str
    place: Place
    # A cut puts a whole new picture in place of the old one; otherwise a thing comes into a scene.
    cut: bool


@dataclass(frozen=True)
class Composition:
    frames: np.ndarray  # uint8 [frames, SIZE, SIZE, 3]
    sights: tuple[tuple[Sight, ...], ...]  # of each frame
    happenings: tuple[Happening, ...]
    kind: str
    seed: int


def compose(media: Media, seed: int, kind: str | None = None) -> Composition:
    """The clip of this seed, of a kind of `KINDS` (drawn by its weight where None)."""
    rng = np.random.default_rng(seed)
    weights = np.array([weight for weight, _ in KINDS.values()])
    drawn = str(rng.choice(list(KINDS), p=weights / weights.sum()))
    kind = kind or drawn
    frames, sights, cuts = KINDS[kind][1](media, rng)
    return Composition(_camera(frames, rng), sights, happenings_of(sights, cuts), kind, seed)


Scene = tuple[np.ndarray, tuple[tuple[Sight, ...], ...], set[int]]
Moments = Callable[[np.random.Generator, int], list[int]]  # at which things change in so many frames


def album(media: Media, seed: int) -> Composition:
    """`GLIMPSES` frames of as many scenes: they teach what things look like, at a frame's price for each."""
    return _album(media, seed, "album", 1, _some_moments)


def changes(media: Media, seed: int) -> Composition:
    """As many frames, `CHANGE` of a scene: in the last of them one thing has come, left or been swapped."""
    return _album(media, seed, "changes", CHANGE, lambda rng, length: [*_at_start(rng), length - 1])


def _album(media: Media, seed: int, kind: str, length: int, moments: Moments) -> Composition:
    rng = np.random.default_rng(seed)
    scenes = [_scene(media, rng, length, moments) for _ in range(GLIMPSES // length)]
    frames = np.concatenate([_camera(canvas, rng) for canvas, _ in scenes])
    return Composition(frames, tuple(itertools.chain(*(sights for _, sights in scenes))), (), kind, seed)


def happenings_of(sights: tuple[tuple[Sight, ...], ...], cuts: set[int]) -> tuple[Happening, ...]:
    """What is to be said follows from what is seen: differences between a frame and the one before.

    At a cut the old picture's going is not told, unless nothing comes in its place.
    """
    happenings = []
    before: tuple[Sight, ...] = ()
    for index, now in enumerate(sights):
        cut = index == 0 or index in cuts
        old, new = {s.name for s in before}, {s.name for s in now}
        if not (cut and now):
            happenings += [
                Happening(index / FPS, "leaves", s.name, s.place, cut) for s in before if s.name not in new
            ]
        happenings += [
            Happening(index / FPS, "appears", s.name, s.place, cut) for s in now if s.name not in old
        ]
        before = now
    return tuple(happenings)


def photographs(media: Media, rng: np.random.Generator) -> Scene:
    """One to three photographs, each panned and zoomed, one after the other by hard cuts."""
    length = int(rng.integers(FEWEST, MOST + 1))
    count = min(int(rng.choice([1, 2, 3], p=[0.35, 0.4, 0.25])), length // (SPACING + 1))
    starts = [0, *_moments(rng, count - 1, length)]
    chosen = _different(media, len(starts), rng)
    empty_end = rng.random() < 0.1
    frames: list[np.ndarray] = []
    sights: list[tuple[Sight, ...]] = []
    for photograph, start, end in zip(chosen, starts, [*starts[1:], length], strict=True):
        gone = empty_end and end == length and end - start >= 2 * SPACING
        shown = (end - start) // 2 if gone else end - start
        frames.append(pan(photograph.pixels(), shown, rng))
        sights += [(Sight(photograph.name, "middle"),)] * shown
        if gone:
            frames.append(np.repeat(_background(media, rng)[None], end - start - shown, axis=0))
            sights += [()] * (end - start - shown)
    cuts = {*starts, *(i for i in range(1, length) if sights[i] == () and sights[i - 1] != ())}
    return np.concatenate(frames), tuple(sights), cuts


@dataclass
class _Track:
    """One thing's stay in a scene, frames `start` to `end`."""

    name: str
    sprite: np.ndarray  # float32 premultiplied [height, width, 4]
    lane: float  # centre, share of the width
    row: float
    size: float
    growth: float  # a frame
    drift: tuple[float, float]  # a frame, shares of the side
    start: int
    end: int
    slides_in: bool
    slides_out: bool


def scene(media: Media, rng: np.random.Generator) -> Scene:
    """A background over which one to three things at a time enter, stay, leave or are swapped."""
    canvas, sights = _scene(media, rng, int(rng.integers(FEWEST, MOST + 1)), _some_moments)
    return canvas, sights, set()


def _scene(
    media: Media, rng: np.random.Generator, length: int, moments: Moments
) -> tuple[np.ndarray, tuple[tuple[Sight, ...], ...]]:
    capacity = int(rng.choice([1, 2, 3], p=[0.5, 0.37, 0.13]))
    tracks = _plot(media, rng, length, capacity, moments)
    canvas = np.stack(
        [_background_at(view, SIZE) for view in _drifting(_background(media, rng), length, rng)]
    )
    sights = []
    for index in range(length):
        seen = []
        for track in tracks:
            share = _visible_share(track, index, length)
            if share > 0:
                x = _draw(canvas[index], track, index, share)
                if share == 1:
                    seen.append(Sight(track.name, PLACES[min(2, max(0, int(x * 3)))]))
        sights.append(tuple(seen))
    return canvas, tuple(sights)


def _plot(media: Media, rng: np.random.Generator, length: int, capacity: int, draw: Moments) -> list[_Track]:
    """Who enters, leaves and is swapped when: lanes keep things apart."""
    lanes = {1: [rng.uniform(0.22, 0.78)], 2: [0.26, 0.74], 3: [0.18, 0.5, 0.82]}[capacity]
    size = {1: rng.uniform(0.45, 0.85), 2: rng.uniform(0.42, 0.52), 3: 0.36}[capacity]
    moments = draw(rng, length)
    supply = itertools.cycle(_things(media, 3 * len(moments) + 3, rng))
    open_tracks: dict[int, _Track] = {}
    tracks = []

    def enter(lane: int, moment: int) -> None:
        thing = next(supply)
        centre = lanes[lane] if capacity > 1 else rng.uniform(0.22, 0.78)
        track = _Track(
            name=thing.name,
            sprite=_sprite(thing),
            lane=centre,
            row=rng.uniform(0.42, 0.58) if size > 0.6 else rng.uniform(0.35, 0.65),
            size=size * rng.uniform(0.9, 1.05),
            growth=rng.uniform(-0.006, 0.01) if rng.random() < 0.4 else 0.0,
            drift=tuple(rng.uniform(-0.006, 0.006, 2)) if rng.random() < 0.5 else (0.0, 0.0),
            start=moment,
            end=length,
            slides_in=moment > 0 and rng.random() < 0.5,
            slides_out=rng.random() < 0.5,
        )
        open_tracks[lane] = track
        tracks.append(track)

    for moment in moments:
        free = [lane for lane in range(capacity) if lane not in open_tracks]
        taken = list(open_tracks)
        action = rng.choice(["enter", "leave", "swap"], p=[0.5, 0.32, 0.18])
        if moment == 0:
            for lane in rng.permutation(free)[: rng.integers(1, capacity + 1)]:
                enter(int(lane), 0)
        elif (action == "enter" and free) or not taken:
            enter(int(rng.choice(free)), moment)
        else:
            lane = int(rng.choice(taken))
            gone = open_tracks.pop(lane)
            gone.end = moment
            if action == "swap":
                enter(lane, moment)
                tracks[-1].slides_in = gone.slides_out = False
    return tracks


def _visible_share(track: _Track, index: int, length: int) -> float:
    """1 where plainly there; about 0.4 in the one frame in which it slides in or out; 0 where it isn't."""
    if track.start <= index < track.end:
        return 1.0
    entering = track.slides_in and index == track.start - 1
    leaving = track.slides_out and index == track.end and track.end < length
    return 0.4 if entering else 0.25 if leaving else 0.0


def _draw(canvas: np.ndarray, track: _Track, index: int, share: float) -> float:
    """Blend the thing into a frame, in place; its centre as a share of the width."""
    age = index - track.start
    height, width = track.sprite.shape[:2]
    side = SIZE * min(0.95, max(0.3, track.size + track.growth * age))
    scale = side / max(height, width)
    x = min(0.95, max(0.05, track.lane + track.drift[0] * age))
    y = min(0.9, max(0.1, track.row + track.drift[1] * age))
    if share < 1:
        # Outside the nearer edge, so that only this share of its width is inside.
        wide = width * scale / SIZE
        x = -wide / 2 + share * wide if x < 0.5 else 1 + wide / 2 - share * wide
    matrix = np.array(
        [[scale, 0, x * SIZE - scale * width / 2], [0, scale, y * SIZE - scale * height / 2]], np.float32
    )
    layer = cv2.warpAffine(
        track.sprite, matrix, (SIZE, SIZE), flags=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    )
    canvas[:] = np.clip(canvas * (1 - layer[..., 3:]) + layer[..., :3], 0, 255).astype(np.uint8)
    return x


def still(media: Media, rng: np.random.Generator) -> Scene:
    """One photograph or one thing that doesn't move at all."""
    length = int(rng.integers(FEWEST, MOST + 1))
    if rng.random() < 0.5:
        photograph = media.photograph(rng)
        frame, sight = pan(photograph.pixels(), 1, rng)[0], Sight(photograph.name, "middle")
    else:
        frame = _background(media, rng)
        (thing,) = _things(media, 1, rng)
        track = _Track(
            name=thing.name,
            sprite=_sprite(thing),
            lane=rng.uniform(0.25, 0.75),
            row=0.5,
            size=rng.uniform(0.5, 0.85),
            growth=0.0,
            drift=(0.0, 0.0),
            start=0,
            end=1,
            slides_in=False,
            slides_out=False,
        )
        sight = Sight(thing.name, PLACES[int(_draw(frame, track, 0, 1.0) * 3)])
    return np.repeat(frame[None], length, axis=0), ((sight,),) * length, set()


def footage(media: Media, rng: np.random.Generator) -> Scene:
    """A stretch of a real clip, to and fro where it is short."""
    length = int(rng.integers(FEWEST, MOST + 1))
    chosen = media.footage[rng.integers(len(media.footage))]
    frames = chosen.frames(FPS)
    order = np.concatenate([np.arange(len(frames)), np.arange(len(frames) - 2, 0, -1)])
    picked = frames[np.resize(np.roll(order, -int(rng.integers(len(order)))), length)]
    margin = rng.uniform(0, 0.12)
    return (
        np.stack([_square(crop(frame, 1 - margin, 0.5, 0.5)) for frame in picked]),
        ((Sight(chosen.name, "middle"),),) * length,
        set(),
    )


def nothing(media: Media, rng: np.random.Generator) -> Scene:
    """Black, a plain colour, a texture or a blur: there is nothing to say, also when it changes."""
    length = int(rng.integers(FEWEST, MOST + 1))
    if rng.random() < 0.35:
        frames = np.full((length, SIZE, SIZE, 3), rng.integers(0, 12), np.uint8)
    else:
        views = _drifting(_background(media, rng), length, rng)
        frames = np.stack([_background_at(view, SIZE) for view in views])
        if rng.random() < 0.3:
            frames[length // 2 :] = _background(media, rng)
    return frames, ((),) * length, set()


KINDS: dict[str, tuple[float, Callable[[Media, np.random.Generator], Scene]]] = {
    "photographs": (0.36, photographs),
    "scene": (0.42, scene),
    "still": (0.06, still),
    "footage": (0.07, footage),
    "nothing": (0.09, nothing),
}


def _some_moments(rng: np.random.Generator, length: int) -> list[int]:
    return [*_at_start(rng), *_moments(rng, int(rng.integers(0, 4)), length)]


def _at_start(rng: np.random.Generator) -> list[int]:
    """Mostly something is there from the first frame."""
    return [0] if rng.random() < 0.7 else []


def _moments(rng: np.random.Generator, count: int, length: int) -> list[int]:
    """Up to `count` frames at which something happens, at least `SPACING` apart and from both ends."""
    free = list(range(SPACING, length - SPACING + 1))
    moments: list[int] = []
    while free and len(moments) < count:
        moment = int(rng.choice(free))
        moments.append(moment)
        free = [index for index in free if abs(index - moment) >= SPACING]
    return sorted(moments)


def _different(media: Media, count: int, rng: np.random.Generator) -> list[Photograph]:
    """Photographs of different things."""
    chosen: dict[str, Photograph] = {}
    while len(chosen) < count:
        photograph = media.photograph(rng)
        chosen.setdefault(photograph.name, photograph)
    return list(chosen.values())


def _things(media: Media, count: int, rng: np.random.Generator) -> list[Photograph | CutOut]:
    """Different things, `count` or all there are."""
    things: dict[str, Photograph | CutOut] = {}
    kinds = len(media.by_name.keys() | {cutout.name for cutout in media.cutouts})
    while len(things) < min(count, kinds):
        card = rng.random() < CARD_SHARE
        thing = media.photograph(rng) if card else media.cutouts[rng.integers(len(media.cutouts))]
        things.setdefault(thing.name, thing)
    return list(things.values())


def _sprite(thing: Photograph | CutOut) -> np.ndarray:
    """The thing with a soft outline: premultiplied RGBA, float32 [height, width, 4]."""
    if isinstance(thing, Photograph):
        return _card(thing)
    pixels = thing.pixels().astype(np.float32)
    alpha = pixels[..., 3:] / 255
    return np.concatenate([pixels[..., :3] * alpha, alpha], axis=2)


def _card(photograph: Photograph) -> np.ndarray:
    pixels = photograph.pixels()
    height, width = pixels.shape[:2]
    inside = np.zeros((height, width), np.float32)
    edge = max(2, min(height, width) // 16)
    inside[edge:-edge, edge:-edge] = 1
    alpha = cv2.GaussianBlur(inside, (0, 0), edge / 2)[..., None]
    return np.concatenate([pixels * alpha, alpha], axis=2).astype(np.float32)


def _background(media: Media, rng: np.random.Generator) -> np.ndarray:
    """A picture of nothing in particular, uint8 [SIZE, SIZE, 3]."""
    kind = rng.choice(["blur", "texture", "gradient", "plain"], p=[0.45, 0.15, 0.2, 0.2])
    if kind == "blur":
        photograph = media.photograph(rng)
        blur = SIZE * rng.uniform(0.07, 0.13)
        return cv2.GaussianBlur(cv2.resize(photograph.pixels(), (SIZE, SIZE)), (0, 0), blur)
    if kind == "texture":
        texture = media.textures[rng.integers(len(media.textures))]
        view = crop(texture, rng.uniform(0.4, 1), rng.random(), rng.random())
        return np.clip(cv2.resize(view, (SIZE, SIZE)) * rng.uniform(0.5, 1.2, 3), 0, 255).astype(np.uint8)
    colours = rng.uniform(0, 255, (2, 3))
    if kind == "plain":
        colours[1] = colours[0]
    ramp = np.linspace(0, 1, SIZE)[:, None, None]
    picture = np.broadcast_to(colours[0] * (1 - ramp) + colours[1] * ramp, (SIZE, SIZE, 3))
    return np.ascontiguousarray(picture.swapaxes(0, 1) if rng.random() < 0.5 else picture).astype(np.uint8)


def _drifting(picture: np.ndarray, length: int, rng: np.random.Generator) -> list[np.ndarray]:
    """The camera pans slowly over a background, or stands."""
    if rng.random() < 0.5:
        return [picture] * length
    zoom, (x0, y0), (x1, y1) = rng.uniform(0.7, 0.95), rng.random(2), rng.random(2)
    return [crop(picture, zoom, x0 + (x1 - x0) * t, y0 + (y1 - y0) * t) for t in np.linspace(0, 1, length)]


def _background_at(view: np.ndarray, size: int) -> np.ndarray:
    return view.copy() if view.shape[:2] == (size, size) else cv2.resize(view, (size, size))


def pan(picture: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """A crop that wanders and zooms over a photograph, uint8 [length, SIZE, SIZE, 3]."""
    flip = rng.random() < 0.5
    (zoom0, zoom1), (x0, x1), (y0, y1) = rng.uniform(0.72, 1, 2), rng.random(2), rng.random(2)
    frames = []
    for t in np.linspace(0, 1, length) if length > 1 else [0.0]:
        view = crop(picture, zoom0 + (zoom1 - zoom0) * t, x0 + (x1 - x0) * t, y0 + (y1 - y0) * t)
        frames.append(_square(view[:, ::-1] if flip else view))
    return np.stack(frames)


def crop(picture: np.ndarray, share: float, x: float, y: float) -> np.ndarray:
    """A window of this share of both sides, placed by x and y in 0..1."""
    height, width = picture.shape[:2]
    high, wide = max(1, round(height * share)), max(1, round(width * share))
    top, left = round((height - high) * y), round((width - wide) * x)
    return picture[top : top + high, left : left + wide]


def _square(view: np.ndarray) -> np.ndarray:
    """Padded to a square as the session does it."""
    return pad_to_square(np.ascontiguousarray(view), SIZE)


def _camera(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light that drifts or jumps, a little blur, sensor noise."""
    length = len(frames)
    gain = np.full(length, rng.uniform(0.8, 1.15))
    if rng.random() < 0.3:
        gain *= np.linspace(1, rng.uniform(0.7, 1.2), length)
    if rng.random() < 0.1:
        gain[int(rng.integers(length)) :] *= rng.uniform(0.7, 1.2)
    lit = frames * gain[:, None, None, None]
    if rng.random() < 0.4:
        lit = lit + rng.normal(0, rng.uniform(1, 5), frames.shape[:3])[..., None]
    lit = np.clip(lit, 0, 255).astype(np.uint8)
    if rng.random() < 0.2:
        lit = np.stack([cv2.GaussianBlur(frame, (0, 0), 0.8) for frame in lit])
    return lit
