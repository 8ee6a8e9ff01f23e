"""The BSQ-VAE gives the reference's images and codes; bits, codes and features fit together at every grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from heatkv.config import MODELS, VAEConfig
from heatkv.scales import ScaleSchedule
from heatkv.vae import BSQVAE, ResidualCodes, shrunk
from tests.benchmarks.memory import most_tensor_bytes

if TYPE_CHECKING:
    from tests.heatkv.conftest import Golden

SCALES = ScaleSchedule.custom(((1, 1), (2, 2), (3, 4), (6, 5)))


@pytest.fixture(params=["golden_small", "golden_patchify"])
def reference(request: pytest.FixtureRequest) -> Golden:
    model: Golden = request.getfixturevalue(request.param)
    return model


def _quantiser(reference: Golden) -> ResidualCodes:
    sizes = reference.outputs["vae/quant_schedule"][:, 1:].tolist()
    scales = ScaleSchedule.custom(tuple((height, width) for height, width in sizes))
    return ResidualCodes(scales, reference.config.vae.code_channels)


def _vae() -> BSQVAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BSQVAE(VAEConfig(8, 4, base_channels=8, multipliers=(1, 2, 1), encoder_blocks=1, norm_groups=4))


def _random_bits(codes: ResidualCodes, batch: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    width = codes.channels * (4 if codes.patchify else 1)
    return [torch.randint(2, (batch, tokens, width), generator=generator) for tokens in codes.scales.tokens]


class TestReference:
    """float32 on a CPU; 1e-4 on images is what the reference's own float64 run leaves room for."""

    @torch.inference_mode()
    def test_encoder_gives_the_reference_latent(self, reference: Golden) -> None:
        latent = reference.vae.encode(torch.tensor(reference.outputs["vae/encoder_in"]))

        np.testing.assert_allclose(latent, reference.outputs["vae/encoder_out"], rtol=0, atol=1e-4)

    def test_quantiser_gives_the_reference_bits_and_latent(self, reference: Golden) -> None:
        bits, latent = _quantiser(reference).quantise(torch.tensor(reference.outputs["vae/encoder_out"]))

        np.testing.assert_array_equal(torch.cat(bits, dim=1), reference.outputs["vae/quant_bits"])
        np.testing.assert_allclose(latent, reference.outputs["vae/quant_z"], rtol=0, atol=2e-6)

    @torch.inference_mode()
    def test_decoder_gives_the_reference_image(self, reference: Golden) -> None:
        for latent, image in (("vae/quant_z", "vae/decoded"), ("main/summed_codes", "main/image_float")):
            decoded = reference.vae.decode(torch.tensor(reference.outputs[latent]))

            np.testing.assert_allclose(decoded, reference.outputs[image], rtol=0, atol=1e-4)

    def test_uint8_image_is_the_reference_within_one_on_a_thousandth(self, reference: Golden) -> None:
        rgb = reference.vae.decode_rgb(torch.tensor(reference.outputs["main/summed_codes"])).numpy()

        difference = np.abs(rgb[..., ::-1].astype(int) - reference.outputs["main/image_uint8_bgr"])

        assert difference.max() <= 1
        assert (difference > 0).mean() < 1e-3

    @pytest.mark.parametrize("case", ["main", "batch2"])
    def test_codes_of_forced_bits_add_up_to_the_reference_sum(self, reference: Golden, case: str) -> None:
        codes = ResidualCodes.of(reference.config, reference.scales)
        bits = reference.bits(case)

        summed = codes.zeros(len(bits[0]))
        for scale, scale_bits in enumerate(bits):
            summed = codes.add(summed, scale_bits, scale)

        np.testing.assert_allclose(summed, reference.outputs[f"{case}/summed_codes"], rtol=0, atol=2e-6)

    def test_features_are_the_reference_inputs_of_the_transformer(self, reference: Golden) -> None:
        codes = ResidualCodes.of(reference.config, reference.scales)

        summed, features = codes.zeros(1), []
        for scale, bits in enumerate(reference.bits("main")[:-1]):
            summed = codes.add(summed, bits, scale)
            features.append(codes.features(summed, scale + 1))

        np.testing.assert_allclose(torch.cat(features, dim=1), reference.outputs["main/next_feat"], rtol=0, atol=2e-6)


class TestResidualCodes:
    def test_each_code_has_unit_length_and_the_sign_of_its_bit(self) -> None:
        codes = ResidualCodes(SCALES, channels=8)
        bits = _random_bits(codes)[2]

        made = codes.codes(bits, 2)

        assert made.shape == (2, 8, 3, 4)
        torch.testing.assert_close(made.norm(dim=1), torch.ones(2, 3, 4))
        assert torch.equal(made.flatten(2).transpose(1, 2) > 0, bits.bool())

    @pytest.mark.parametrize("patchify", [False, True])
    def test_the_bits_of_a_scale_come_back_from_its_codes(self, patchify: bool) -> None:
        codes = ResidualCodes(SCALES, channels=8, patchify=patchify)

        for scale, bits in enumerate(_random_bits(codes)):
            at_own_grid = ResidualCodes(ScaleSchedule.custom(((1, 1), SCALES.sizes[scale])), 8, patchify)
            assert torch.equal(at_own_grid.quantise_scale(codes.codes(bits, scale), 1), bits.to(torch.uint8))

    @pytest.mark.parametrize("patchify", [False, True])
    def test_features_have_one_row_per_token_and_the_width_of_the_bits(self, patchify: bool) -> None:
        codes = ResidualCodes(SCALES, channels=8, patchify=patchify)

        features = codes.features(codes.zeros(2), 2)

        assert features.shape == (2, 12, 32 if patchify else 8)

    def test_patchify_doubles_every_grid(self) -> None:
        codes = ResidualCodes(SCALES, channels=8, patchify=True)

        assert codes.grid(2) == (6, 8)
        assert codes.zeros(1).shape == (1, 8, 12, 10)
        assert codes.codes(_random_bits(codes)[2], 2).shape == (2, 8, 6, 8)

    @pytest.mark.parametrize(
        ("cells", "width", "expected"),
        [
            ([0.0, 4.0], 4, [0.0, 1.0, 3.0, 4.0]),
            # Downwards too it takes the two nearest cells and no others: nothing is smoothed away first.
            ([0.0, 3.0, 6.0, 100.0], 1, [4.5]),
        ],
    )
    def test_codes_are_resized_linearly_without_antialiasing(
        self, cells: list[float], width: int, expected: list[float]
    ) -> None:
        codes = ResidualCodes(ScaleSchedule.custom(((1, width), (1, len(cells)))), channels=1)

        resized = codes.features(torch.tensor(cells).view(1, 1, 1, -1), 0)

        assert resized.flatten().tolist() == expected

    def test_a_zero_counts_as_minus_one(self) -> None:
        codes = ResidualCodes(SCALES, channels=8)

        assert not codes.quantise_scale(torch.zeros(1, 8, 6, 5), 0).any()

    def test_the_quantised_latent_is_the_sum_of_its_bits(self) -> None:
        codes = ResidualCodes(SCALES, channels=8)
        latent = torch.randn(2, 8, 6, 5, generator=torch.Generator().manual_seed(1))

        bits, quantised = codes.quantise(latent)
        summed = codes.zeros(2)
        for scale, scale_bits in enumerate(bits):
            summed = codes.add(summed, scale_bits, scale)

        assert torch.equal(summed, quantised)


class TestAutoencoder:
    def test_a_latent_cell_is_a_patch_of_the_image(self) -> None:
        vae = _vae()

        latent = vae.encode(torch.zeros(2, 3, 12, 8))

        assert latent.shape == (2, 8, 3, 2)
        assert vae.decode(latent).shape == (2, 3, 12, 8)

    def test_halving_takes_every_second_cell_and_pads_behind(self) -> None:
        halve: Any = _vae().encoder.down[0].downsample
        with torch.no_grad():
            halve.conv.weight.zero_()
            halve.conv.bias.zero_()
            halve.conv.weight[0, 0, 1, 2] = 1  # one row down, two columns right
        image = torch.zeros(1, 8, 4, 4)
        image[0, 0] = torch.arange(1, 17).view(4, 4)

        halved = halve(image)[0, 0]

        assert halved.tolist() == [[7, 0], [15, 0]]

    def test_images_are_clamped_and_truncated_to_uint8(self) -> None:
        vae = _vae()
        last: Any = vae.decoder.conv_out
        with torch.no_grad():
            last.weight.zero_()
            # (0.999 + 1) / 2 * 255 = 254.87: rounding would give 255.
            last.bias.copy_(torch.tensor([0.999, -5.0, 5.0]))

        rgb = vae.decode_rgb(torch.zeros(1, 8, 2, 2))

        assert rgb.dtype == torch.uint8
        assert rgb.shape == (1, 8, 8, 3)
        assert rgb[0, 0, 0].tolist() == [254, 0, 255]

    def test_a_batch_is_decoded_image_by_image(self) -> None:
        vae = _vae()
        latent = torch.randn(3, vae.config.code_channels, 6, 8, generator=torch.Generator().manual_seed(0))

        together = vae.decode_rgb(latent)

        assert torch.equal(together, torch.cat([vae.decode_rgb(one) for one in latent.split(1)]))
        alone = most_tensor_bytes(lambda: vae.decode_rgb(latent[:1]))
        assert most_tensor_bytes(lambda: vae.decode_rgb(latent)) < 1.5 * alone

    @pytest.mark.parametrize(
        ("grid", "small"), [((64, 64), (16, 16)), ((48, 80), (10, 16)), ((3, 90), (1, 16)), ((12, 16), (12, 16))]
    )
    def test_a_latent_shrinks_to_so_many_cells_and_keeps_its_aspect(
        self, grid: tuple[int, int], small: tuple[int, int]
    ) -> None:
        latent = torch.ones(1, 4, *grid)

        assert shrunk(latent, 16).shape == (1, 4, *small)
        assert shrunk(latent, 16).unique().tolist() == [1.0]

    def test_a_bfloat16_vae_decodes_float32_codes(self) -> None:
        vae = _vae()
        codes = torch.randn(1, 8, 2, 2, generator=torch.Generator().manual_seed(0))

        exact, rounded = vae.decode_rgb(codes).int(), vae.bfloat16().decode_rgb(codes).int()

        assert (exact - rounded).abs().float().mean() < 3

    @pytest.mark.parametrize(("name", "groups"), [("infinity-2b", {32}), ("infinity-8b", {32}), ("infinity-tiny", {8})])
    def test_group_norms_are_official_unless_the_model_says_otherwise(self, name: str, groups: set[int]) -> None:
        with torch.device("meta"):
            vae = BSQVAE(MODELS[name].vae)

        norms = [module for module in vae.modules() if isinstance(module, torch.nn.GroupNorm)]

        assert {norm.num_groups for norm in norms} == groups
        assert {norm.eps for norm in norms} == {1e-6}
