"""The tools that the policy calls: they take what it wrote and answer with one line of text and perhaps a view."""

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actfer_jax import facs
from actfer_jax.agent.episode import Reply
from actfer_jax.agent.parser import ToolCall
from actfer_jax.faces.align import aligned_frame, region_box
from actfer_jax.faces.detector import Face, FaceDetector
from actfer_jax.faces.images import check_image
from actfer_jax.faces.store import FaceStore
from actfer_jax.faces.views import (
    GREY,
    POLICY_UNITS,
    Affine,
    View,
    ViewConfig,
    compose,
    cut,
    invert,
    magnify,
    overlap_area,
    pitch,
    polygon_area,
    rectangle,
    scene_frame,
    transform,
)

TREATMENTS = ("", "blank_crop", "low_res_crop", "blank_views")
LISTED_FACES = 4

_CACHED_IMAGES = 65_536
_MIN_BOX_SIDE = 4.0  # Original pixels: less than that shows nothing.
# A box shows a part of a face if so much of it lies in the aligned view, and its area is so much of the face box's.
_MIN_SHARE_INSIDE = 0.5
_MIN_SHARE_OF_FACE, _MAX_SHARE_OF_FACE = 0.05, 0.9

_FACE = {"type": "integer", "description": "as detect_faces lists it; 0 by default"}


def tool_schemas(images: int) -> list[dict[str, Any]]:
    """The tools as JSON function schemas, for the chat template.

    They are short: every row of a batch holds them.

    Args:
      images: how many images a sample has. With several, every tool takes the number of one.
    """
    number: dict[str, Any] = {}
    which = "view of bbox: 0, the default, is the picture, then views in order"
    if images > 1:
        number = {"image": {"type": "integer", "description": f"picture, 0 (default) to {images - 1}"}}
        which = f"view of bbox: 0 to {images - 1} are the pictures, then views in order. With region, the picture. "
        which += "0 by default"
    box = {"type": "array", "items": {"type": "integer"}}
    return [
        _schema("detect_faces", "Lists faces, the surest first: number, box, confidence.", number),
        _schema("align_face", "Shows a face upright and large.", {"face": _FACE, **number}),
        _schema(
            "zoom",
            "Shows a region (of face), or a bbox (of image), from the original pixels.",
            {
                "region": {"type": "string", "enum": list(facs.REGIONS)},
                "face": {"type": "integer"},
                "bbox": box | {"description": f"[left, top, right, bottom] in 0..{POLICY_UNITS} of the view"},
                "image": {"type": "integer", "description": which},
            },
        ),
    ]


def _schema(name: str, description: str, properties: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOL_SCHEMAS = tool_schemas(images=1)


class _Refusal(Exception):
    """A call that cannot be carried out; its text is the reply.

    The text never repeats what the policy wrote: that could spell the special tokens of a chat template.
    """


class Toolbox:
    """The tools over one detector, with the faces of each image remembered.

    It may be shared by threads, and sent to other processes (where it starts with nothing remembered).

    Args:
      store: where found faces are kept between runs; None for nowhere.
    """

    def __init__(self, detector: FaceDetector, view_config: ViewConfig, store: FaceStore | None = None) -> None:
        self.detector, self.view_config, self.store = detector, view_config, store
        self._lock = threading.Lock()
        self._faces: OrderedDict[Hashable, Future[tuple[Face, ...]]] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return Toolbox, (self.detector, self.view_config, self.store)

    def scene(self, image: NDArray[np.uint8], index: int = 0, *, seen: bool = True) -> View:
        """The whole of an image, uint8 [H, W, 3], as one of the first views of an episode.

        Args:
          index: which of the sample's images it is.
          seen: with its pixels.
        """
        check_image(image)
        to_original, size = scene_frame(image.shape[0], image.shape[1], self.view_config)
        if not seen:
            return View.without_pixels(size, to_original, "scene", index)
        return replace(cut(image, to_original, size, "scene"), image=index)

    def faces(self, key: Hashable, image: NDArray[np.uint8], index: int = 0) -> tuple[Face, ...]:
        """The faces in an image, uint8 [H, W, 3], best score first, detected once for every `key` and `index`.

        Threads that ask for the same image wait for the one that came first; different images do not wait.

        Raises:
          ImageError: the image is no such array.
        """
        check_image(image)
        with self._lock:
            first = (key, index) not in self._faces
            future = self._faces.setdefault((key, index), Future())
            self._faces.move_to_end((key, index))
            if len(self._faces) > _CACHED_IMAGES:
                self._faces.popitem(last=False)
        if first:
            try:
                store = self.store
                future.set_result(store.detect(self.detector, image) if store else self.detector.detect(image))
            except BaseException as error:
                with self._lock:
                    self._faces.pop((key, index), None)
                future.set_exception(error)
        return future.result()

    def remember(self, key: Hashable, faces: tuple[Face, ...], index: int = 0) -> None:
        """Sets the faces of an image that was searched elsewhere: none will be detected for `key` and `index`."""
        known = Future[tuple[Face, ...]]()
        known.set_result(faces)
        with self._lock:
            self._faces[key, index] = known

    def execute(
        self,
        call: ToolCall | None,
        error: str,
        *,
        images: Sequence[NDArray[np.uint8]],
        key: Hashable,
        views: Sequence[View],
        treatment: str = "",
    ) -> Reply:
        """Carries out one call of the policy.

        Args:
          call: the call, or None where it could not be read.
          error: then, why.
          images: uint8 [H, W, 3] each, the images of the sample.
          key: what the faces in them are remembered by.
          views: the views shown so far, the scenes first: what `zoom`'s `image` counts.
          treatment: "", or for the controls of an evaluation "blank_crop" (zoomed views are plain grey) or
            "low_res_crop" (zoomed views are cut from the aligned view's pixels, where they would be finer), or
            "blank_views" (aligned views are grey, too). None of them changes any text, size or map.

        Returns:
          The reply. A call that asks for what cannot be done gets one with `ok` false and a line that says why; its
          `tool` is "" where there is no such tool.

        Raises:
          ValueError: there is no such treatment, or an image is no such array.
        """
        for image in images:
            check_image(image)
        if treatment not in TREATMENTS:
            raise ValueError(f"treatment is {treatment!r}; it must be one of {TREATMENTS}")
        if call is None:
            return Reply(error, ok=False)
        if call.name not in TOOLS:
            return Reply(f"unknown tool; the tools are {', '.join(TOOLS)}", ok=False)
        try:
            _check_names(call, len(images))
            index = _image_index(call, len(images), views)
            image, faces = images[index], self.faces(key, images[index], index)
            if call.name == "detect_faces":
                return self._detect_faces(image, faces)
            where = f" in image {index}" if len(images) > 1 else ""
            if call.name == "align_face":
                reply = self._align_face(call.arguments, image, faces, where)
            else:
                reply = self._zoom(call.arguments, image, faces, where, views, treatment)
            view = reply.view and replace(reply.view, image=index)
            if view and treatment == "blank_views":
                view = replace(view, pixels=np.full_like(view.pixels, GREY))
            return replace(reply, view=view, found_by=faces[0].step if faces else "")
        except _Refusal as refusal:
            return Reply(str(refusal), ok=False, tool=call.name)

    def _detect_faces(self, image: NDArray[np.uint8], faces: tuple[Face, ...]) -> Reply:
        if not faces:
            return Reply("no face found", ok=True, tool="detect_faces")
        units = np.array([image.shape[1], image.shape[0]] * 2) / POLICY_UNITS
        listed = []
        for index, face in enumerate(faces[:LISTED_FACES]):
            box = np.clip(np.rint(face.box / units), 0, POLICY_UNITS).astype(int)
            listed.append(f"{index} [{' '.join(map(str, box.tolist()))}] {face.score:.2f}")
        count = "1 face" if len(faces) == 1 else f"{len(faces)} faces"
        more = ", ..." if len(faces) > len(listed) else ""
        return Reply(f"{count}: {', '.join(listed)}{more}", ok=True, tool="detect_faces")

    def _align_face(
        self, arguments: dict[str, Any], image: NDArray[np.uint8], faces: tuple[Face, ...], where: str
    ) -> Reply:
        index = _face_index(arguments, faces)
        side = self.view_config.aligned_side
        view = cut(image, aligned_frame(faces[index], side), (side, side), f"face {index} aligned{where}")
        return Reply(_caption(view), ok=True, tool="align_face", view=view)

    def _zoom(
        self,
        arguments: dict[str, Any],
        image: NDArray[np.uint8],
        faces: tuple[Face, ...],
        where: str,
        views: Sequence[View],
        treatment: str,
    ) -> Reply:
        if ("region" in arguments) == ("bbox" in arguments):
            raise _Refusal("zoom takes either region or bbox")
        if "region" in arguments:
            region = _region(arguments)
            index = _face_index(arguments, faces)
            frame = aligned_frame(faces[index], self.view_config.aligned_side)
            box = region_box(faces[index], region, frame)
            name = f"{region} of face {index}{where}"
        else:
            region = "bbox"
            index = arguments.get("image", 0)
            frame = views[index].to_original
            box = views[index].box_pixels(_policy_box(arguments["bbox"]))
            name = f"box of image {index}"
        if min(box[2] - box[0], box[3] - box[1]) * pitch(frame).min() < _MIN_BOX_SIDE:
            raise _Refusal("that is too small to show anything")
        if overlap_area(transform(frame, rectangle(box)), (0.0, 0.0, image.shape[1], image.shape[0])) <= 0:
            raise _Refusal("that lies outside the picture")
        to_original, size = magnify(frame, box, self.view_config)
        if treatment == "blank_crop":
            view = View(np.full((*size, 3), GREY, np.uint8), to_original, name)
        elif treatment == "low_res_crop":
            coarse = self._coarse_frame(image, faces, transform(to_original, rectangle((0.0, 0.0, size[1], size[0]))))
            view = _cut_through(coarse, image, to_original, size, name)
        else:
            view = cut(image, to_original, size, name)
        inspects = region != "bbox" or self._shows_part(view, faces)
        return Reply(_caption(view), ok=True, tool="zoom", view=view, region=region, inspects=inspects)

    def _shows_part(self, view: View, faces: tuple[Face, ...]) -> bool:
        """Whether a view shows a part of some face: neither the whole face, nor too little of it to see anything."""
        area, side = polygon_area(view.footprint), self.view_config.aligned_side
        for face in faces:
            in_aligned = transform(invert(aligned_frame(face, side)), view.footprint)
            inside = overlap_area(in_aligned, (0.0, 0.0, side, side)) / polygon_area(in_aligned)
            share = area / polygon_area(rectangle(face.box))
            if inside >= _MIN_SHARE_INSIDE and _MIN_SHARE_OF_FACE <= share <= _MAX_SHARE_OF_FACE:
                return True
        return False

    def _coarse_frame(
        self, image: NDArray[np.uint8], faces: tuple[Face, ...], footprint: NDArray[np.float64]
    ) -> Affine:
        """The map of the coarse view that shows an area: the aligned face it overlaps most, else the scene."""
        overlaps = [overlap_area(footprint, face.box) for face in faces]
        if max(overlaps, default=0.0) > 0:
            return aligned_frame(faces[int(np.argmax(overlaps))], self.view_config.aligned_side)
        return scene_frame(image.shape[0], image.shape[1], self.view_config)[0]


def _cut_through(
    coarse: Affine, image: NDArray[np.uint8], to_original: Affine, size: tuple[int, int], name: str
) -> View:
    """Cuts a zoom from the pixels of a coarser view, whose pixel grid is continued where the zoom leaves it.

    A zoom that is no finer than that view is cut from the image as ever: it shows no more detail.
    """
    if pitch(to_original).min() >= pitch(coarse).max():
        return cut(image, to_original, size, name)
    to_coarse = compose(invert(coarse), to_original)
    corners = transform(to_coarse, rectangle((0.0, 0.0, size[1], size[0])))
    low, high = np.floor(corners.min(0)) - 1, np.ceil(corners.max(0)) + 1
    width, height = (high - low).astype(int).tolist()
    shift = np.array([[1.0, 0.0, low[0]], [0.0, 1.0, low[1]]])
    seen = cut(image, compose(coarse, shift), (height, width))
    return View(cut(seen.pixels, compose(invert(shift), to_coarse), size).pixels, to_original, name)


def _caption(view: View) -> str:
    return f"{view.name}, {view.width}x{view.height}"


def _check_names(call: ToolCall, images: int) -> None:
    allowed = _arguments(images)[call.name]
    if not set(call.arguments) <= set(allowed):
        raise _Refusal(f"{call.name} takes {', '.join(allowed) or 'no arguments'}")


def _region(arguments: dict[str, Any]) -> str:
    region = arguments["region"]
    if not isinstance(region, str) or region not in facs.REGIONS:
        raise _Refusal(f"unknown region; the regions are {', '.join(facs.REGIONS)}")
    return region


def _face_index(arguments: dict[str, Any], faces: tuple[Face, ...]) -> int:
    if not faces:
        raise _Refusal("no face found")
    return _index(arguments, "face", len(faces))


def _image_index(call: ToolCall, images: int, views: Sequence[View]) -> int:
    """Which of the sample's images a call is about."""
    arguments = call.arguments
    if "bbox" in arguments and "region" not in arguments:
        if "face" in arguments:
            raise _Refusal("face goes with region, not with bbox")
        return views[_index(arguments, "image", len(views))].image
    if images == 1 and "region" in arguments and "image" in arguments:
        raise _Refusal("image goes with bbox, not with region")
    return _index(arguments, "image", images) if images > 1 else 0


def _index(arguments: dict[str, Any], name: str, count: int) -> int:
    value = arguments.get(name, 0)
    # `type` and not `isinstance`: true is no number.
    if type(value) is not int or not 0 <= value < count:
        raise _Refusal(f"{name} must be a whole number from 0 to {count - 1}" if count > 1 else f"{name} must be 0")
    return value


def _policy_box(value: Any) -> list[int]:
    if (
        not isinstance(value, list)
        or len(value) != 4
        or any(type(number) is not int or not 0 <= number <= POLICY_UNITS for number in value)
        or value[0] >= value[2]
        or value[1] >= value[3]
    ):
        raise _Refusal(f"bbox must be whole numbers [x0, y0, x1, y1] in 0..{POLICY_UNITS}, x0 < x1 and y0 < y1")
    return value


@cache
def _arguments(images: int) -> dict[str, tuple[str, ...]]:
    """The arguments that each tool takes, by its name."""
    functions = [schema["function"] for schema in tool_schemas(images)]
    return {function["name"]: tuple(function["parameters"]["properties"]) for function in functions}


TOOLS = tuple(_arguments(images=1))
"""Their names."""
