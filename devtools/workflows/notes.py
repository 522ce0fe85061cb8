"""What the notes in the workflows say, in Markdown."""

TIER = """## Edit a picture: {name}

{words}. {row.precision}, {row.steps} steps, guidance {row.guidance:g}, about {row.width}x{row.height} in the picture's
own shape, preset *{row.preset}*.

1. Load your picture, write what shall change - and what shall stay - and run.
2. *Kontext Settings for This Machine* says what the run will take, and warns where it will not fit.
Its *use_case* changes steps, guidance and size together.
3. Guidance 5 holds on to the prompt strongly; 2.5 is Black Forest Labs' own default.
"""
LIGHTNING = """\
4. *Load Kontext LoRA* says what its file itself wants of steps and guidance; wire these instead to follow it.
"""
USE_CASE = """## {name}: {words}

{row.precision}, {row.steps} steps, guidance {row.guidance:g}, about {row.width}x{row.height} in the picture's own
shape, preset *{row.preset}*.

1. Load your picture, write what shall change - and what shall stay - and run.
2. *Kontext Settings for This Machine* reads your card, says what the run will take, and makes it smaller where the card
is. It names the model's file that fits; choose that in *Load Kontext Model*.
"""
GALLERY = """3. Each run makes {n} pictures; set the number beside *Run* to make more.
"""
MULTI_REFERENCE = """## Several pictures into one

1. Load up to sixteen pictures; *Encode Kontext References* grows a socket for each. The first gives the result its
shape (*shape_of*).
2. Name them in the prompt in their order: the first image, the second image.
3. *total_megapixels* is the budget of all together; more is slower and takes more memory. The report under the node
counts both.
4. *Kontext Reference* before a socket gives a picture a weight, a size or a mask.
"""
SCHEDULER_STUDY = """## Half the steps by another sampler

The same picture, prompt and seed by Euler in 28 steps and by DPM-Solver++ 2M in 14. *How alike* gives the SSIM of the
two; the note under each *Optimize Kontext* gives its time.

Try other samplers, schedulers and steps on the right before you settle on one.
"""
FILES = """
### Files

{get}

{files}

The weights of FLUX.1 Kontext [dev] have a non-commercial licence of their own.
"""
OFFERED = "ComfyUI offers to download the `.safetensors` files; `.gguf` files you download yourself:"
