"""Costs read from the text of compiled programs, against closed forms."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _ahead import hlo
from _ahead.chips import GPUS, TPUS, chip_of, parse_topology, roofline
from _ahead.costs import convolution_flops, group_size, part_of, program_costs
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dfpo_jax.sharding import create_mesh

# A loop as the TPU compiler writes it: no trip count, the counter goes up by 2 in a fusion, and
# the body gathers its weights in two halves.
LOOP = pathlib.Path(__file__).with_name("loop.hlo").read_text()


def test_loops_count_as_often_as_they_run():
    costs = program_costs(LOOP)
    trips = 3  # 0, 2, 4
    assert costs.unknown_loops == 0
    assert costs.flops == trips * 2 * 8 * 64 * 64
    assert costs.sent == {
        "all-gather": trips * 3 * (16 * 64 * 2),  # three of four parts come from elsewhere
        "reduce-scatter": 64 * 64 * 4 * 3 / 4,
        "collective-permute": 16 * 64 * 4,
        "all-reduce": 2 * 64 * 64 * 4 / 2,
    }


def test_traffic_counts_slices_once_and_fast_memory_not_at_all():
    slice_bytes = 16 * 64 * 2
    per_trip = (
        2 * slice_bytes  # the slice, read and written
        + slice_bytes  # what the all-gather reads; its result stays in fast memory
        + 2 * (8 * 64 * 2)  # the product reads x and writes y
        + 2 * 4  # the counter
    )
    outside = 64 * 64 * 4 + 16 * 64 * 4  # the scattered sum
    outside += 2 * 16 * 64 * 4  # sent, and received
    outside += 2 * 64 * 64 * 4
    assert program_costs(LOOP).hbm_bytes == 3 * per_trip + outside


@pytest.mark.parametrize(
    ("rest", "part"),
    [
        (
            ', metadata={op_name="jit(update)/while/body/transpose(jvp(Policy))/layers/mlp/dot"}',
            "backward Policy/layers/mlp/dot bf16[8,64]",
        ),
        (
            ', metadata={op_name="jit(update)/checkpoint/cond/branch_1_fun/add"}',
            "update/add bf16[8,64]",
        ),
        ("", "fusion bf16[8,64]"),
    ],
)
def test_traffic_is_told_by_part(rest, part):
    line = f"  %x = (f32[4], bf16[8,64]) fusion(%a), kind=kLoop{rest}"
    assert part_of(hlo.parse_instruction(line)) == part


def test_a_loop_of_unknown_length_counts_once_and_is_told():
    text = LOOP.replace("%limit = s32[]{:T(128)} constant(6)", "%limit = s32[] negate(%i.1)")
    costs = program_costs(text)
    assert costs.unknown_loops == 1 and costs.flops == 2 * 8 * 64 * 64


def test_a_slice_that_is_fetched_ahead_counts_as_the_slice():
    text = """
%ahead (p: f32[32,8]) -> f32[4,8] {
  %p = f32[32,8]{1,0} parameter(0)
  ROOT %s = f32[4,8]{1,0} slice(%p), slice={[4:8], [0:8]}
}

ENTRY %main (x: f32[32,8]) -> f32[4,8] {
  %x = f32[32,8]{1,0} parameter(0)
  %a = ((f32[32,8]{1,0}), f32[4,8]{1,0S(1)}, s32[]{:S(2)}) async-start(%x), calls=%ahead
  ROOT %d = f32[4,8]{1,0S(1)} async-done(%a), calls=%ahead
}
"""
    assert program_costs(text).hbm_bytes == 4 * 8 * 4  # read; it arrives in fast memory


@pytest.mark.parametrize(
    ("line", "moved"),
    [
        # Fetched ahead into fast memory, written back from there, and copied within HBM.
        ("(f32[4,8]{1,0S(1)}, f32[4,8]{1,0}, u32[]{:S(2)}) copy-start(%hbm)", 1),
        ("(f32[4,8]{1,0}, f32[4,8]{1,0S(1)}, u32[]{:S(2)}) copy-start(%fast)", 1),
        ("(f32[4,8]{1,0}, f32[4,8]{1,0}, u32[]{:S(2)}) copy-start(%hbm)", 2),
        # A fourth is read, and the whole arrives in HBM or in fast memory.
        ("(f32[4,8]{1,0}, f32[16,8]{1,0}) all-gather-start(%hbm)", 1 + 4),
        ("(f32[4,8]{1,0}, f32[16,8]{1,0S(1)}) all-gather-start(%hbm)", 1),
        ("f32[4,8]{1,0} all-reduce-start(%hbm)", 2),
    ],
)
def test_what_is_only_begun_counts_where_it_reads_and_where_it_writes(line, moved):
    text = f"""
ENTRY %main (hbm: f32[4,8], fast: f32[4,8]) -> f32[4,8] {{
  %hbm = f32[4,8]{{1,0}} parameter(0)
  %fast = f32[4,8]{{1,0S(1)}} parameter(1)
  ROOT %a = {line}, replica_groups={{{{0,1,2,3}}}}
}}
"""
    assert program_costs(text).hbm_bytes == moved * 4 * 8 * 4


def test_operands_that_a_fusion_slices_or_updates_count_as_the_slice():
    text = """
%inner (a: f32[9,8], i: s32[]) -> f32[1,8] {
  %a = f32[9,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %s = f32[1,8]{1,0} dynamic-slice(%a, %i, %i), dynamic_slice_sizes={1,8}
}

%read (b: f32[9,8], j: s32[]) -> f32[1,8] {
  %b = f32[9,8]{1,0} parameter(0)
  %j = s32[] parameter(1)
  %n = f32[1,8]{1,0} fusion(%b, %j), kind=kLoop, calls=%inner
  ROOT %twice = f32[1,8]{1,0} add(%n, %n)
}

%write (c: f32[9,8], u: f32[1,8], k: s32[]) -> f32[9,8] {
  %c = f32[9,8]{1,0} parameter(0)
  %u = f32[1,8]{1,0} parameter(1)
  %k = s32[] parameter(2)
  ROOT %d = f32[9,8]{1,0} dynamic-update-slice(%c, %u, %k, %k)
}

ENTRY %main (x: f32[9,8], t: s32[]) -> f32[9,8] {
  %x = f32[9,8]{1,0} parameter(0)
  %t = s32[] parameter(1)
  %row = f32[1,8]{1,0} fusion(%x, %t), kind=kLoop, calls=%read
  ROOT %new = f32[9,8]{1,0} fusion(%x, %row, %t), kind=kLoop, calls=%write
}
"""
    row, index = 8 * 4, 4
    assert program_costs(text).hbm_bytes == (2 * row + index) + (2 * row + index)


@pytest.mark.parametrize(
    ("line", "left", "right", "expected"),
    [
        # A plain product.
        ("f32[8,32] convolution(%a, %b), dim_labels=bf_io->bf", (8, 16), (16, 32), 2 * 8 * 16 * 32),
        # Heads of the result as a spatial axis: the input has one place, padded on both sides.
        (
            "bf16[4,20,8,16] convolution(%a, %b), window={size=1x8 pad=0_0x7_7 rhs_reversal=0x1}, "
            "dim_labels=0b1f_0o1i->0b1f",
            (4, 20, 1, 64),
            (1, 16, 8, 64),
            2 * (4 * 20) * 64 * (8 * 16),
        ),
        # Heads summed over: a window as wide as the input.
        (
            "bf16[20,4,64,1] convolution(%a, %b), window={size=1x8}, dim_labels=0b1f_0io1->b0f1",
            (4, 20, 8, 16),
            (1, 16, 64, 8),
            2 * (4 * 20) * (8 * 16) * 64,
        ),
        # A batched product: place i of the input meets place i of the window alone.
        (
            "f32[6,8,32] convolution(%a, %b), window={size=6 stride=5 pad=0_0 lhs_dilate=6}, "
            "dim_labels=0bf_0io->0bf",
            (6, 8, 16),
            (6, 16, 32),
            2 * 6 * 8 * 16 * 32,
        ),
    ],
)
def test_products_written_as_convolutions(line, left, right, expected):
    instruction = hlo.parse_instruction(f"  %c = {line}")
    assert convolution_flops(instruction, left, right) == expected


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}, x", 4),
        ("replica_groups=[4,16]<=[16,4]T(1,0), x", 16),
        ("replica_groups=mesh['a'=16,'b'=4] {'a','b'}, x", 64),
        ("replica_groups=mesh['a'=1,'b'=8,'c'=4], device_ids=([4,8]T(1,0)) {'b'}, x", 8),
        ("channel_id=3", 1),
    ],
)
def test_group_sizes(groups, size):
    assert group_size(groups) == size


def test_groups_that_cannot_be_read_are_no_group_of_one():
    with pytest.raises(
        ValueError, match="replica_groups=some: no groups of chips that can be read"
    ):
        group_size("replica_groups=some")


def test_a_program_compiled_here():
    """A scan of sharded products on eight devices: the same counts from a real compiler."""
    mesh = create_mesh(1, 4, 2)
    steps, rows, width = 5, 16, 32

    def run(x, stack):
        def step(x, w):
            x = jax.lax.with_sharding_constraint(x @ w, NamedSharding(mesh, P("fsdp", None)))
            return x, None

        return jax.lax.scan(step, x, stack)[0]

    def abstract(shape, *spec):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))

    inputs = abstract((rows, width), "fsdp"), abstract((steps, width, width), None, "tensor")
    text = jax.jit(run).lower(*inputs).compile().as_text()
    costs = program_costs(text)
    assert costs.unknown_loops == 0
    assert costs.flops == pytest.approx(steps * 2 * (rows // 4) * (width // 2) * width)
    # Each of two devices holds a partial sum of all columns of its rows.
    (kind,) = costs.sent
    assert kind == "all-reduce"
    assert costs.sent[kind] == steps * 2 * (rows // 4) * width * 4 / 2
    assert sum(costs.traffic.values()) == costs.hbm_bytes


def test_a_collective_in_steps_counts_once():
    step = """
%step.{n} (p: f32[4]) -> f32[16] {{
  %p = f32[4]{{0}} parameter(0)
  ROOT %ag = f32[16]{{0}} all-gather(%p), channel_id={channel}, replica_groups=[2,4]<=[8], \
backend_config={{"async_collective_fusion_config":{{}}}}
}}
"""
    calls = "".join(
        f"  %f.{n} = f32[16]{{0}} fusion(%x), kind=kCustom, calls=%step.{n}\n" for n in range(3)
    )
    text = "".join(step.format(n=n, channel=7 + n // 2) for n in range(3))
    text += f"ENTRY %main (x: f32[4]) -> f32[16] {{\n  %x = f32[4]{{0}} parameter(0)\n{calls}}}\n"
    assert program_costs(text).sent == {"all-gather": 2 * 3 * 16}  # channels 7 and 8


def test_splash_kernels_count_half_a_square_per_product():
    text = """
ENTRY %main (q: bf16[3,2,256,128], k: bf16[3,256,128]) -> bf16[3,2,256,128] {
  %q = bf16[3,2,256,128]{3,2,1,0} parameter(0)
  %k = bf16[3,256,128]{2,1,0} parameter(1)
  %other = bf16[4] custom-call(%k), custom_call_target="tpu_custom_call"
  ROOT %splash_mqa_fwd.4 = bf16[3,2,256,128] custom-call(%q), custom_call_target="tpu_custom_call"
}
"""
    costs = program_costs(text)
    assert costs.flops == 2 * (2 * 3 * 2 * 256 * 256 * 128) / 2
    assert costs.unknown_kernels == 1


def test_the_roofline_is_the_slowest_of_three():
    chip = TPUS["v5p"]
    for flops, hbm, ici, seconds, bound in (
        (459e12, 0, 0, 1.0, "MXU"),
        (459e12, 2765e9 * 3, 0, 3.0, "HBM"),
        (459e12, 2765e9 * 3, 600e9 * 4, 4.0, "ICI"),
    ):
        found = roofline(chip, flops, hbm, ici)
        np.testing.assert_allclose(found[0], seconds)
        assert found[1] == bound


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v9:4x4", "chip must be one of v4, v5e, v5p, v6e"),
        ("v5p:4x4", "v5p has 3 sizes, such as v5p:4x4x4"),
        ("v6e:2x4x1", "v6e has 2 sizes, such as v6e:4x4"),
        ("v5e:8xmany", "v5e has 2 sizes"),
        ("v5e", "v5e has 2 sizes"),
    ],
)
def test_a_bad_topology_is_named(text, message):
    with pytest.raises(ValueError, match=f"{re.escape(repr(text))}.*{message}"):
        parse_topology(text)


def test_topologies():
    assert parse_topology("v5p:4x4x4") == ("v5p", (4, 4, 4))
    assert parse_topology("v6e:2x4") == ("v6e", (2, 4))


# Attention as the GPU compiler writes it: 2 queries' heads for each of the keys'.
_CUDNN = """
HloModule step

ENTRY %main (q: bf16[2,16,4,8], k: bf16[2,16,2,8], v: bf16[2,16,2,8], b: bf16[2,1,16,16]) -> bf16[2,4,16,8] {
  %q = bf16[2,16,4,8]{3,2,1,0} parameter(0)
  %k = bf16[2,16,2,8]{3,2,1,0} parameter(1)
  %v = bf16[2,16,2,8]{3,2,1,0} parameter(2)
  %b = bf16[2,1,16,16]{3,2,1,0} parameter(3)
  %f = (bf16[2,4,16,8]{3,1,2,0}, u8[0]{0}) custom-call(%q, %k, %v, %b), custom_call_target="__cudnn$fmhaScaleBiasSoftmax"
  %g = (bf16[2,4,16,8]{3,1,2,0}, u8[0]{0}) custom-call(%q, %k, %v), custom_call_target="__cudnn$fmhaSoftmaxBackward", backend_config={"cudnn_fmha_backend_config": {"mask_type": "CAUSAL"}}
  %u = bf16[2,4,16,8]{3,1,2,0} custom-call(%q), custom_call_target="__cublas$gemm"
  ROOT %o = bf16[2,4,16,8]{3,1,2,0} get-tuple-element(%f), index=0
}
"""  # noqa: E501


def test_attention_by_cudnn_counts_its_products_and_other_kernels_are_told():
    costs = program_costs(_CUDNN)
    one_product = 2 * (2 * 4 * 16 * 16 * 8)
    assert costs.flops == (2 + 5 / 2) * one_product  # the second is causal
    assert costs.unknown_kernels == 1


# A product whose operand comes through a fusion that only reshapes it.
_RESHAPED = """
HloModule step

%reshaping (p: bf16[8,64,16]) -> bf16[512,16] {
  %p = bf16[8,64,16]{2,1,0} parameter(0)
  ROOT %b = bf16[512,16]{1,0} bitcast(%p)
}

%product (x: bf16[8,64,16], y: bf16[4,16]) -> f32[512,4] {
  %x = bf16[8,64,16]{2,1,0} parameter(0)
  %y = bf16[4,16]{1,0} parameter(1)
  %r = bf16[512,16]{1,0} fusion(%x), kind=kLoop, calls=%reshaping
  ROOT %d = f32[512,4]{1,0} dot(%r, %y), lhs_contracting_dims={1}, rhs_contracting_dims={1}
}

ENTRY %main (x: bf16[8,64,16], y: bf16[4,16]) -> f32[512,4] {
  %x = bf16[8,64,16]{2,1,0} parameter(0)
  %y = bf16[4,16]{1,0} parameter(1)
  ROOT %f = f32[512,4]{1,0} fusion(%x, %y), kind=kOutput, calls=%product
}
"""


def test_an_operand_that_is_reshaped_inside_a_fusion_is_read_whole():
    costs = program_costs(_RESHAPED)
    assert costs.hbm_bytes == 2 * (8 * 64 * 16 + 4 * 16) + 4 * 512 * 4
    assert costs.flops == 2 * 512 * 4 * 16


@pytest.mark.parametrize(
    ("kind", "chip"),
    [
        ("NVIDIA H100 80GB HBM3", GPUS["h100"]),
        ("NVIDIA A100-SXM4-80GB", GPUS["a100"]),
        ("NVIDIA A100-SXM4-40GB", None),
        ("NVIDIA H100 PCIe", None),
        ("TPU v5 lite", TPUS["v5e"]),
        ("TPU v5", TPUS["v5p"]),
        ("TPU v6 lite", TPUS["v6e"]),
        ("cpu", None),
    ],
)
def test_figures_of_a_chip_are_found_by_the_name_of_its_device(kind, chip):
    assert chip_of(kind) is chip
