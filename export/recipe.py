"""Recipes: what export does to a model, declared. A recipe is data; `quantize` does the work.

Most fields are a flag of `flatlm export` (help and bounds stand with it), and each ingredient can be skipped
alone, so that an ablation is a row of flags.
"""

from __future__ import annotations

from dataclasses import dataclass

from flatlm.runtime.errors import UsageError
from flatlm.runtime.options import check_fields, option

INGREDIENTS = (
    "smooth",  # move range from activations into weights
    "split",  # per-tensor weights: several intermediate channels for one of enormous down weights
    "flatten",  # several pieces for a large activation channel
    "gptq",  # else weights are rounded to nearest
    "order",  # GPTQ: columns of large inputs first
    "bias",  # move each output's mean error into the bias
)
LAYERS = ("qkv", "out", "gate_up", "down")


@dataclass(frozen=True)
class Recipe:
    """How the layers of a model are quantized."""

    name: str = option("edge", help="the recipe's name, kept in the manifest")
    weight_bits: str = option(
        "auto",
        "--weight-bits",
        choices=("4", "8", "auto"),
        help="bits of weights; auto: 4 or 8 per layer, by KL",
    )
    weight_scale: str = option(
        "channel",
        "--weight-scale",
        choices=("tensor", "channel"),
        help="one step per weight tensor or per row",
    )
    head_bits: str = option(
        "auto",
        "--head-bits",
        choices=("4", "8", "auto"),
        help="bits of the head and of an embedding tied to it, one scale per row; another embedding keeps 8. "
        "auto: 8, or what --size asks for",
    )
    nested: bool = option(
        False,
        "--nested",
        help="8-bit weights as two 4-bit planes, the high one a 4-bit model that may draft for the whole",
    )
    low_levels: int = option(
        127,
        "--low-levels",
        low=7,
        high=127,
        help="largest activation level of 4-bit layers: 127 is A8, 7 is A4",
    )
    activations: str = option(
        "token",
        "--activations",
        choices=("static", "token"),
        help="the inputs' step: one for the layer, from calibration, or one for each token",
    )
    bits_per_weight: float = option(
        4.5, "--bits-per-weight", low=4.0, high=8.5, help="budget of the layers between embedding and head"
    )
    size: float | None = option(
        None,
        "--size",
        low=0.01,
        high=1e6,
        metavar="MB",
        help="instead of --bits-per-weight: budget of the weights of the whole model, embedding and head "
        "included; tokenizer and graph are not counted",
    )
    max_kl: float | None = option(
        None,
        "--max-kl",
        low=0.0,
        high=100.0,
        help="instead of a budget: 4 bits while the layers' KL adds up to less",
    )
    sigma: float = option(
        2.5,
        "--sigma",
        low=1.0,
        high=20.0,
        help="4-bit weights, and those of --nested, go to the sparse excess beyond this many sigma",
    )
    sigmas: tuple[float, ...] = option(
        (),
        "--sigmas",
        low=1.0,
        high=20.0,
        metavar="X,X,…",
        help="other sigmas that auto may choose for a layer",
    )
    alphas: tuple[float, ...] = option(
        (0.0, 0.2, 0.35, 0.5, 0.65, 0.8), low=0.0, high=1.0, help="smoothing strengths to try per layer"
    )
    wide_channels: float = option(
        0.08,
        "--wide-channels",
        low=0.0,
        high=0.5,
        help="share of input channels that may be wide, of two int8 digits, on average; with a step per "
        "token, of groups of 4 channels",
    )
    two_digits: tuple[str, ...] = option(
        (),
        "--two-digits",
        choices=LAYERS,
        metavar="LAYER",
        help="with a step per token, layers of which all input channels are wide: of " + ", ".join(LAYERS),
    )
    split_channels: float = option(
        0.02,
        "--split-channels",
        low=0.0,
        high=1.0,
        help="share of intermediate channels that splitting may add",
    )
    kv: str = option(
        "float32",
        "--kv",
        choices=("int8", "float32"),
        help="the K/V cache: float32, or int8 with a scale per token and head (a quarter of the bytes)",
    )
    margin: float = option(
        1.05, "--margin", low=1.0, high=4.0, help="headroom over the largest calibration input of a channel"
    )
    damping: float = option(
        1.0,
        "--damping",
        low=1e-6,
        high=100.0,
        help="GPTQ: share added to the Hessian's diagonal, times its channels over the calibration tokens",
    )
    skip: tuple[str, ...] = option(
        (),
        "--skip",
        choices=INGREDIENTS,
        metavar="INGREDIENT",
        help="leave out one of " + ", ".join(INGREDIENTS),
    )
    context: int | None = option(
        None,
        "--context",
        low=1,
        high=1 << 28,
        metavar="TOKENS",
        help="longest text the model is exported for, where its rotation depends on it (LongRoPE); default: "
        "as long as config.json allows",
    )
    windows: int = option(
        32,
        "--calibration-windows",
        low=0,
        high=4096,
        help="calibration windows of 512 tokens; 0, of recipe quick: none, weights to the nearest integers",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.nested and self.weight_bits != "8":
            raise UsageError(
                "--nested: only 8-bit weights have planes; give --weight-bits 8, or --recipe nested"
            )
        if self.windows == 0:
            self._check_uncalibrated()

    def _check_uncalibrated(self) -> None:
        fault = {
            "--weight-bits auto": self.weight_bits == "auto",
            "--weight-scale tensor": self.weight_scale != "channel",
            "--activations static": self.activations != "token",
            "--kv int8": self.kv != "float32",
            "--head-bits 4": self.head == "4",
            "a recipe that calibrates": any(map(self.does, INGREDIENTS)),
        }
        if named := next((what for what, there in fault.items() if there), None):
            raise UsageError(
                f"without calibration windows there is no {named}: take --recipe quick as it is, or another"
            )

    @property
    def head(self) -> str:
        """`head_bits` with auto worked out: to be chosen, or 8."""
        chosen = self.size is not None and self.weight_bits == "auto"
        return self.head_bits if self.head_bits != "auto" or chosen else "8"

    @property
    def lowest_bits(self) -> int:
        """Of the weights of a layer for which nothing better is chosen."""
        return 8 if self.weight_bits == "8" else 4

    def damping_of(self, channels: int, tokens: int) -> float:
        """GPTQ's damping of a layer of so many input channels, seen on so many calibration tokens."""
        return self.damping * channels / tokens

    def does(self, ingredient: str) -> bool:
        return ingredient not in self.skip


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(name="edge", two_digits=("down",)),
        Recipe(name="w8a8", weight_bits="8", wide_channels=0.12, two_digits=("out", "down")),
        Recipe(name="nested", weight_bits="8", nested=True, wide_channels=0.12, two_digits=("out", "down")),
        Recipe(
            name="paper",
            weight_scale="tensor",
            low_levels=7,
            activations="static",
            wide_channels=0.05,
            max_kl=0.5,
        ),
        Recipe(
            name="naive8",
            weight_bits="8",
            weight_scale="tensor",
            activations="static",
            margin=1.0,
            skip=INGREDIENTS,
        ),
        Recipe(name="quick", weight_bits="4", two_digits=LAYERS, sigma=2.2, windows=0, skip=INGREDIENTS),
    )
}
