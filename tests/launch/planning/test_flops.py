"""The products of compiled programs: in a text by hand, as each compiler writes it, and in real ones."""

import importlib.util
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from launch.planning.compiled.flops import attention_passes, executed_flops, kernels
from tests.conftest import ROOT
from tests.small import QUICK

needs_compiler = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason="libtpu, the TPU compiler, is not installed here"
)
# A loop of five trips with a fusion and a kernel, and a fusion that two places share.
PROGRAM = """HloModule step

%fused.1 (p: f32[2,3,5], q: f32[2,7,5]) -> f32[2,3,7] {
  %p.1 = f32[2,3,5]{2,1,0} parameter(0)
  %q.1 = f32[2,7,5]{2,1,0:T(8,128)} parameter(1)
  ROOT %d.1 = f32[2,3,7]{2,1,0} dot(%p.1, %q.1), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={2}
}

%fused.2 (p: bf16[11,13]) -> bf16[11,17] {
  %p.2 = bf16[11,13]{1,0} parameter(0)
  %q.2 = bf16[13,17]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %d.2 = bf16[11,17]{1,0:T(8,128)(2,1)} convolution(%p.2, %q.2), dim_labels=bf_io->bf
}

%condition (c: (s32[])) -> pred[] {
  %c.3 = (s32[]) parameter(0)
  %n.3 = s32[] get-tuple-element(%c.3), index=0
  %limit.3 = s32[] constant(5)
  ROOT %less.3 = pred[] compare(%n.3, %limit.3), direction=LT
}

%body (c: (s32[])) -> (s32[]) {
  %c.4 = (s32[]) parameter(0)
  %n.4 = s32[] get-tuple-element(%c.4), index=0
  %one.4 = s32[] constant(1)
  %next.4 = s32[] add(%n.4, %one.4)
  %f.4 = f32[2,3,7]{2,1,0} fusion(%x, %y), kind=kOutput, calls=%fused.1
  %splash_mha_fwd_residuals.4 = f32[4,8] custom-call(%x), custom_call_target="tpu_custom_call"
  ROOT %t.4 = (s32[]) tuple(%next.4)
}

%never (p: bf16[11,13]) -> bf16[11,17] {
  %f.5 = bf16[11,17]{1,0} fusion(%x), kind=kOutput, calls=%fused.2
}

ENTRY %main (p: bf16[11,13]) -> bf16[11,17] {
  %zero.6 = s32[] constant(0)
  %start.6 = (s32[]) tuple(%zero.6)
  %w.6 = (s32[]) while(%start.6), condition=%condition, body=%body
  %f.6 = bf16[11,17]{1,0} fusion(%x), kind=kOutput, calls=%fused.2
  %f.7 = bf16[11,17]{1,0} fusion(%z), kind=kOutput, calls=%fused.2
}
"""  # noqa: E501 - as the compiler writes it


def test_products_count_as_often_as_they_run() -> None:
    """A fusion that two places share twice, and none that nothing calls."""
    assert executed_flops(PROGRAM) == 2 * (5 * 2 * 3 * 7 * 5 + 2 * 11 * 17 * 13)
    assert kernels(PROGRAM) == {"splash_mha_fwd_residuals": 5}
    assert attention_passes(PROGRAM, 5) == pytest.approx(2 / 6)


@pytest.mark.parametrize(
    ("here", "instead"),
    [
        ("constant(5)", "parameter(0)"),
        ("tpu_custom_call", "__cublas$gemm"),
        ("splash_mha_fwd", "other"),
    ],
)
def test_what_the_program_does_not_say_is_refused(here: str, instead: str) -> None:
    assert here in PROGRAM
    with pytest.raises(ValueError, match="does not say"):
        attention_passes(PROGRAM.replace(here, instead), 5) + executed_flops(PROGRAM.replace(here, instead))


@pytest.mark.parametrize(
    ("window", "left", "right", "result", "labels", "met"),
    [
        # As a product: one place of the input for each of the window's, though it moves over what is beside it.
        ("size=4 pad=3_3 rhs_reversal=1", (2, 1, 3), (4, 3, 5), (2, 4, 5), "b0f_0io->b0f", 4),
        # As a batch: the window skips what is spread between the numbers.
        ("size=4 stride=3 lhs_dilate=4", (2, 4, 3), (4, 3, 5), (2, 4, 5), "b0f_0io->b0f", 4),
        # As a sum over both.
        ("size=4", (2, 4, 3), (4, 3, 5), (2, 1, 5), "b0f_0io->b0f", 4),
        # A true one: 7 numbers, 3 apart by 2, and one place beside them.
        ("size=3 pad=1_1 rhs_dilate=2", (2, 7, 3), (3, 3, 5), (2, 5, 5), "b0f_0io->b0f", 4 + 5 + 4),
    ],
)
def test_a_window_multiplies_what_is_there(
    window: str, left: tuple[int, ...], right: tuple[int, ...], result: tuple[int, ...], labels: str, met: int
) -> None:
    sizes = ["f32[{}]{{2,1,0}}".format(",".join(map(str, shape))) for shape in (left, right, result)]
    text = (
        f"ENTRY %main (p: f32[]) -> f32[] {{\n  %a.1 = {sizes[0]} parameter(0)\n  %b.1 = {sizes[1]} parameter(1)\n"
        f"  ROOT %c.1 = {sizes[2]} convolution(%a.1, %b.1), window={{{window}}}, dim_labels={labels}\n}}\n"
    )
    assert executed_flops(text) == 2 * 2 * 3 * 5 * met


def test_a_program_for_cpus_says_what_it_multiplies() -> None:
    """Seven trips of a loop, in which one product is written, and one outside of it."""

    def function(x_BD: jax.Array, w_DD: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 7, lambda _, x_BD: jnp.sin(x_BD @ w_DD), x_BD) @ w_DD

    shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((53, 67), (67, 67)))
    assert executed_flops(jax.jit(function).lower(*shapes).compile(QUICK).as_text()) == 2 * 8 * 53 * 67 * 67


@pytest.mark.rest
@needs_compiler
def test_a_step_multiplies_what_its_model_needs() -> None:
    """`dense`, layers unrolled: all of 6 x parameters and the full square, 2 V D where logits are made again, and no
    more; where each layer is done again a third more.
    """
    T, D, tokens, cases = (
        1024,
        512,
        32 * 1024,
        [(2, "none", 131072), (4, "none", 131072), (2, "full", 512), (4, "full", 512)],
    )
    words = [",".join(map(str, case)) for case in cases]
    done = subprocess.run(
        [sys.executable, "-m", "tests.launch.planning.tpu_products", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for (L, remat, V), line in zip(cases, done.stdout.splitlines(), strict=True):
        needed = tokens * (6 * (12 * L * D * D + V * D) + 12 * L * T * D)
        again = 2 * V * D * tokens if V == 131072 else 0
        share = float(line) / (needed + again)
        print(f"{L} layers, remat {remat}, {V} tokens: {share:.4f}")
        assert 0.999 < share <= 1.02 if remat == "none" else 1.2 < share <= 1.35
