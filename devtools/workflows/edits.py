"""The workflows of tiers, use cases and tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from ...engine.tiers.files import CLIP_L, MODELS, T5_FP8, VAE, File
from ...engine.tiers.tiers import STANDARD, TIERS, USE_CASES, Settings, Tier, UseCase
from . import notes
from .graph import Graph, Json, Node, Output

PROMPT = "Make it a snowy winter evening. Keep everything else as it is."
FOUR = (
    "Put the object from the second image and the one from the third image into the first image, in the colors of the "
    "fourth image."
)
GALLERY = 4  # pictures a run
TILED = 1536  # pixels a side from which the VAE decodes in tiles


def link(file: File) -> Json:
    """For `properties.models`, of which the front-end offers a download of .safetensors files."""
    return {"name": file.name, "url": file.url, "directory": file.directory}


def where_to_get(*files: File) -> str:
    """A line for each, in Markdown."""
    return "\n".join(
        f"- [{file.name}]({file.url}), {file.gb:.1f} GB, into `models/{file.directory}`"
        + (f"; {file.hint}" if file.hint else "")
        for file in files
    )


def read_me(graph: Graph, text: str, *files: File) -> None:
    """The note, with where the files are to be had."""
    graph.group("Read me", "green", -1)
    graph.note(text + notes.FILES.format(get=notes.OFFERED, files=where_to_get(*files)), 340, 640)


def models(graph: Graph, model: File, encoder: File, lora: File | None = None) -> tuple[Node, Node, Node]:
    """Transformer (with a LoRA), CLIP and VAE, from files."""
    graph.group("Models", "blue", 0)
    transformer = graph.node("KontextLoadModel", model_name=model.name, models=[link(model)])
    if lora:
        transformer = graph.node(
            "KontextLightningLoRA", model=transformer["MODEL"], lora_name=lora.name, models=[link(lora)], height_px=280
        )
    clip = graph.node(
        "KontextLoadTextEncoders",
        clip_l_name=CLIP_L.name,
        t5xxl_name=encoder.name,
        models=[link(CLIP_L), link(encoder)],
    )
    return transformer, clip, graph.node("VAELoader", vae_name=VAE.name, models=[link(VAE)])


def settings(graph: Graph, tier: str, use_case: str, transformer: Node) -> tuple[Node, Node]:
    """The tier's node, and the optimizer that follows it."""
    graph.group("This machine", "blue", 1)
    chosen = graph.node("KontextTier", tier=tier, use_case=use_case, width_px=340)
    fast = graph.node(
        "KontextOptimize", model=transformer["MODEL"], preset=chosen["preset"], width_px=340, height_px=430
    )
    return chosen, fast


def pictures(graph: Graph, n: int = 1) -> list[Output]:
    """Pictures of the user's own."""
    graph.group("Pictures" if n > 1 else "Picture", "green", 0)
    titles = [f"The {word} image" for word in ("first", "second", "third", "fourth")[:n]]
    titles = titles if n > 1 else ["The picture to edit"]
    return [graph.node("LoadImage", image="example.png", title=title)["IMAGE"] for title in titles]


def instruct(
    graph: Graph, clip: Node, vae: Node, given: list[Output], prompt: str, chosen: Node, **more: object
) -> tuple[Node, Node]:
    """The encoder of the references, whose latent the sampler starts from, and the negative that is no prompt."""
    graph.group("Instruction", "amber", 2)
    text = graph.node("CLIPTextEncode", clip=clip["CLIP"], text=prompt, title="What to change", width_px=340)
    guided = graph.node("FluxGuidance", conditioning=text["CONDITIONING"], guidance=chosen["guidance"], width_px=340)
    references = {f"references.image{i}": picture for i, picture in enumerate(given)}
    encoded = graph.node(
        "KontextEncodeReferences",
        conditioning=guided["CONDITIONING"],
        vae=vae["VAE"],
        megapixels=chosen["megapixels"],
        width_px=340,
        height_px=400,
        **references,
        **more,
    )
    return encoded, graph.node("ConditioningZeroOut", conditioning=text["CONDITIONING"], width_px=340)


def sample(graph: Graph, model: Output, encoded: Node, negative: Node, latent: Output, **more: object) -> Node:
    """KSampler at cfg 1."""
    return graph.node(
        "KSampler",
        model=model,
        positive=encoded["CONDITIONING"],
        negative=negative["CONDITIONING"],
        latent_image=latent,
        cfg=1.0,
        **more,
    )


def decode(graph: Graph, sampled: Node, vae: Node, in_tiles: bool = False) -> Output:
    """The picture."""
    kind = "VAEDecodeTiled" if in_tiles else "VAEDecode"
    return graph.node(kind, samples=sampled["LATENT"], vae=vae["VAE"])["IMAGE"]


def compare(graph: Graph, before: Output, after: Output) -> None:
    """How much of the picture was kept, at the result's size, to which it was stretched as the reference was."""
    graph.group("How much was kept", "green", 4)
    size = graph.node("GetImageSize", image=after, height_px=120)
    how = {"upscale_method": "lanczos", "width": size["width"], "height": size["height"], "crop": "disabled"}
    scaled = graph.node("ImageScale", image=before, **how)
    graph.node("KontextCompareSSIM", image_a=scaled["IMAGE"], image_b=after, width_px=420, height_px=640)


def edit(graph: Graph, tier: str, use_case: str, chosen_settings: Settings, encoder: File, note: str) -> Graph:
    """One edit of one picture."""
    lora = chosen_settings.lora_file
    transformer, clip, vae = models(graph, chosen_settings.model, encoder, lora)
    (picture,) = pictures(graph)
    chosen, fast = settings(graph, tier, use_case, transformer)
    encoded, negative = instruct(graph, clip, vae, [picture], PROMPT, chosen, fit="fit")
    graph.group("Edit", "purple", 3)
    latent, batch = encoded["LATENT"], use_case == "gallery batch"
    if batch:
        latent = graph.node("RepeatLatentBatch", samples=latent, amount=GALLERY)["LATENT"]
    after = "randomize" if batch else "fixed"  # other pictures each run, where many are wanted
    sampled = sample(graph, fast["MODEL"], encoded, negative, latent, after=after, **by(chosen))
    in_tiles = chosen_settings.width >= TILED or chosen_settings.preset == "low memory"
    result = decode(graph, sampled, vae, in_tiles)
    graph.node("SaveImage", images=result, filename_prefix=graph.name, width_px=420)
    if not batch:
        compare(graph, picture, result)
    read_me(graph, note, chosen_settings.model, *([lora] if lora else []), CLIP_L, encoder, VAE)
    return graph


def of_tier(graph: Graph, tier: Tier) -> Graph:
    """The workflow of a tier."""
    words = notes.TIER.format(name=tier.name, words=_capital(tier.words), row=tier.settings)
    words += notes.LIGHTNING * tier.settings.lora
    return edit(graph, tier.name, STANDARD, tier.settings, tier.text_encoder, words)


def of_use_case(graph: Graph, case: UseCase) -> Graph:
    """The workflow of a use case, at the tier of the machine it is opened on."""
    words = notes.USE_CASE.format(name=_capital(case.name), words=case.words, row=case.settings)
    words += notes.GALLERY.format(n=GALLERY) * (case.name == "gallery batch")
    return edit(graph, "auto", case.name, case.settings, T5_FP8, words)


def multi_reference(graph: Graph) -> Graph:
    """One picture from four, of which the last is of half the weight."""
    model = MODELS["Q4_K_M"]
    transformer, clip, vae = models(graph, model, T5_FP8)
    *three, fourth = pictures(graph, 4)
    given = [*three, graph.node("KontextReference", image=fourth, weight=0.5)["reference"]]
    chosen, fast = settings(graph, "auto", "production", transformer)
    encoded, negative = instruct(graph, clip, vae, given, FOUR, chosen, total_megapixels=1.0)
    graph.node("PreviewImage", images=encoded["layout"], title="What the model sees, and where", width_px=340)
    graph.group("Edit", "purple", 3)
    sampled = sample(graph, fast["MODEL"], encoded, negative, encoded["LATENT"], **by(chosen))
    graph.node("SaveImage", images=decode(graph, sampled, vae), filename_prefix=graph.name, width_px=420)
    read_me(graph, notes.MULTI_REFERENCE, model, CLIP_L, T5_FP8, VAE)
    return graph


def scheduler_study(graph: Graph) -> Graph:
    """The same edit by Euler in 28 steps and by DPM-Solver++ 2M in 14, side by side."""
    model = MODELS["Q4_K_M"]
    transformer, clip, vae = models(graph, model, T5_FP8)
    (picture,) = pictures(graph)
    graph.group("This machine", "blue", 1)
    chosen = graph.node("KontextTier", tier="auto", use_case="production", width_px=340)
    encoded, negative = instruct(graph, clip, vae, [picture], PROMPT, chosen)
    results = []
    for i, (sampler, scheduler, steps) in enumerate((("euler", "simple", 28), ("dpmpp_2m", "sgm_uniform", 14))):
        graph.group(f"{sampler}, {steps} steps", "purple", 3 + i)
        how = {"steps": steps, "sampler_name": sampler, "scheduler": scheduler}
        # every step computed: the samplers are compared, not the cache
        fast = graph.node("KontextOptimize", model=transformer["MODEL"], preset="quality", width_px=340, height_px=430)
        sampled = sample(graph, fast["MODEL"], encoded, negative, encoded["LATENT"], **how)
        results.append(decode(graph, sampled, vae))
        graph.node("SaveImage", images=results[-1], filename_prefix=f"{graph.name}_{sampler}", width_px=420)
    graph.group("How alike", "green", 5)
    graph.node("KontextCompareSSIM", image_a=results[0], image_b=results[1], width_px=420, height_px=640)
    read_me(graph, notes.SCHEDULER_STUDY, model, CLIP_L, T5_FP8, VAE)
    return graph


def by(chosen: Node) -> dict[str, Output]:
    """What the tier's node says to KSampler."""
    return {"steps": chosen["steps"], "sampler_name": chosen["sampler"], "scheduler": chosen["scheduler"]}


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]


def workflows(infos: Mapping[str, Json]) -> dict[str, Graph]:
    """{file name without its ending: workflow}. infos: of ComfyUI's /object_info."""
    makers: dict[str, Callable[[Graph], Graph]] = {
        "kontext_multi_reference": multi_reference,
        "kontext_scheduler_study": scheduler_study,
    }
    for tier in TIERS.values():
        makers[f"kontext_tier_{tier.slug}"] = partial(of_tier, tier=tier)
    for case in USE_CASES.values():
        makers[f"kontext_{case.slug}"] = partial(of_use_case, case=case)
    return {name: make(Graph(name, infos)) for name, make in makers.items()}
