"""Weights of masked autoencoders by the published names and by transformers', held to PyTorch's own answers."""

import jax
import numpy as np
import pytest

from refine_jax.interop import mae_weights, torch_weights
from refine_jax.interop.torch_weights import WeightsError
from refine_jax.networks.mae import positions

torch = pytest.importorskip("torch")
WIDTH, DECODER_WIDTH, PATCH, SIDE = 128, 64, 4, 3  # two heads each, as the published models divide them


def block(name, width):
    sizes = {"norm1": (width,), "norm2": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    sizes |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    entries = {f"{name}.{part}.weight": shape for part, shape in sizes.items()}
    return entries | {f"{name}.{part}.bias": shape[:1] for part, shape in sizes.items()}


def published(seed=0):
    """A state dict of the published names, with random weights."""
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
        **block("blocks.0", WIDTH),
        **block("blocks.1", WIDTH),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
        "decoder_embed.weight": (DECODER_WIDTH, WIDTH),
        "decoder_embed.bias": (DECODER_WIDTH,),
        "mask_token": (1, 1, DECODER_WIDTH),
        **block("decoder_blocks.0", DECODER_WIDTH),
        "decoder_norm.weight": (DECODER_WIDTH,),
        "decoder_norm.bias": (DECODER_WIDTH,),
        "decoder_pred.weight": (3 * PATCH**2, DECODER_WIDTH),
        "decoder_pred.bias": (3 * PATCH**2,),
    }
    rng = np.random.default_rng(seed)
    entries = {name: rng.normal(scale=0.2, size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, width in (("pos_embed", WIDTH), ("decoder_pos_embed", DECODER_WIDTH)):
        entries[name] = np.concatenate([np.zeros((1, width), np.float32), positions(width, SIDE, SIDE)])[None]
    return entries


def as_transformers(entries):
    """The names that ViTMAEForPreTraining of transformers 4.57 gives to the same entries."""
    top = {
        "cls_token": "vit.embeddings.cls_token",
        "pos_embed": "vit.embeddings.position_embeddings",
        "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
        "norm": "vit.layernorm",
        "mask_token": "decoder.mask_token",
    }
    inner = {
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
    }
    renamed = {}
    for name, value in entries.items():
        module, _, kind = name.rpartition(".") if name.endswith(("weight", "bias")) else (name, "", "")
        if "blocks." in name:
            part, number, rest = module.split(".", 2)
            there = {"blocks": "vit.encoder.layer", "decoder_blocks": "decoder.decoder_layers"}[part]
            if rest == "attn.qkv":
                for third, own in zip(("query", "key", "value"), np.split(value, 3), strict=True):
                    renamed[f"{there}.{number}.attention.attention.{third}.{kind}"] = own
                continue
            module = f"{there}.{number}.{inner[rest]}"
        else:
            module = top.get(module, f"decoder.{module}")
        renamed[f"{module}.{kind}" if kind else module] = value
    return renamed


def torch_answer(entries, images, hidden):
    """The published program's forward pass, after its masking, written out for one image after another."""
    given = {name: torch.from_numpy(value) for name, value in entries.items()}

    def layer(name, x):
        return torch.nn.functional.linear(x, given[f"{name}.weight"], given[f"{name}.bias"])

    def norm(name, x):
        return torch.nn.functional.layer_norm(x, x.shape[-1:], given[f"{name}.weight"], given[f"{name}.bias"], 1e-6)

    def transformer(name, x, heads):
        query, key, value = layer(f"{name}.attn.qkv", norm(f"{name}.norm1", x)).chunk(3, dim=-1)
        split = lambda t: t.reshape(len(t), heads, -1).transpose(0, 1)  # noqa: E731
        seen = torch.nn.functional.scaled_dot_product_attention(split(query), split(key), split(value))
        x = x + layer(f"{name}.attn.proj", seen.transpose(0, 1).reshape(x.shape))
        inner = torch.nn.functional.gelu(layer(f"{name}.mlp.fc1", norm(f"{name}.norm2", x)))
        return x + layer(f"{name}.mlp.fc2", inner)

    answers = []
    for image, mask in zip(torch.from_numpy(images), torch.from_numpy(hidden), strict=True):
        x = torch.nn.functional.conv2d(
            image.permute(2, 0, 1)[None], given["patch_embed.proj.weight"], given["patch_embed.proj.bias"], PATCH
        )
        x = x[0].flatten(1).T + given["pos_embed"][0, 1:]
        x = torch.cat([given["cls_token"][0] + given["pos_embed"][0, :1], x[~mask]])
        for i in range(2):
            x = transformer(f"blocks.{i}", x, 2)
        x = layer("decoder_embed", norm("norm", x))
        tokens = given["mask_token"][0].repeat(SIDE**2, 1)
        tokens[~mask] = x[1:]
        x = torch.cat([x[:1], tokens]) + given["decoder_pos_embed"][0]
        x = transformer("decoder_blocks.0", x, 2)
        answers.append(layer("decoder_pred", norm("decoder_norm", x))[1:].numpy())
    return np.stack(answers)


@pytest.mark.parametrize("how", ["torch", "safetensors"])
def test_a_file_of_either_naming_answers_as_pytorch_does(how, tmp_path):
    entries = published()
    path = tmp_path / "mae"
    if how == "torch":
        torch.save({"model": {name: torch.from_numpy(value) for name, value in entries.items()}}, path)
    else:
        pytest.importorskip("safetensors.numpy").save_file(as_transformers(entries), path)
    module, variables, side = mae_weights.load(path)
    assert (module.patch_size, module.width, module.depth, module.heads) == (PATCH, WIDTH, 2, 2)
    assert (module.decoder_width, module.decoder_depth, module.decoder_heads) == (DECODER_WIDTH, 1, 2)
    assert side == SIDE * PATCH
    rng = np.random.default_rng(1)
    images = rng.normal(size=(3, side, side, 3)).astype(np.float32)
    hidden = rng.random((3, SIDE**2)).argsort(axis=1) < 6
    got = jax.jit(module.apply, static_argnums=3)(variables, images, hidden, 3)
    np.testing.assert_allclose(got, torch_answer(entries, images, hidden), atol=1e-4)


@pytest.mark.parametrize(
    ("width", "depth", "patch", "heads"), [(768, 12, 16, 12), (1024, 24, 16, 16), (1280, 32, 14, 16)]
)
def test_the_published_sizes_are_seen_by_their_shapes(width, depth, patch, heads):
    shapes = {
        "cls_token": (1, 1, width),
        "mask_token": (1, 1, 512),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        f"blocks.{depth - 1}.norm1.weight": (width,),
        "decoder_blocks.7.norm1.weight": (512,),
    }
    options = torch_weights.infer_options("mae", {name: np.zeros(shape) for name, shape in shapes.items()})
    assert options == {
        "patch_size": patch,
        "width": width,
        "depth": depth,
        "heads": heads,
        "decoder_width": 512,
        "decoder_depth": 8,
        "decoder_heads": 16,
    }


def test_what_is_no_whole_autoencoder_is_refused_by_what_it_lacks():
    entries = published()
    encoder = {name: value for name, value in entries.items() if "decoder" not in name and name != "mask_token"}
    with pytest.raises(WeightsError, match="no decoder"):
        mae_weights.convert(encoder)
    with pytest.raises(WeightsError, match=r"missing: blocks\.1\.attn\.proj\.bias"):
        mae_weights.convert({name: value for name, value in entries.items() if name != "blocks.1.attn.proj.bias"})
    with pytest.raises(WeightsError, match="pos_embed are other positions"):
        mae_weights.convert(entries | {"pos_embed": entries["pos_embed"] + 0.1})
    with pytest.raises(WeightsError, match="missing: decoder_pos_embed"):
        mae_weights.convert({name: value for name, value in entries.items() if name != "decoder_pos_embed"})
