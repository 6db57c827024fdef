"""Prints how far this project lies from the reference programs: the table of docs/fidelity.md.

    python -m benchmarks.fidelity

From the repository's root, on a CPU, in a few minutes. What is compared with, and the rules by which
weights and inputs come from seeds, is in tests/goldens; the tests hold what is printed here to its tolerance.
"""

import json
from collections.abc import Iterator

import jax
import numpy as np

from refine_jax import losses
from refine_jax.interop import torch_weights
from refine_jax.networks.unet import UNet
from tests.defenses import test_objective, test_trajectory
from tests.goldens import rules
from tests.networks import test_goldens

DTYPES = (np.float32, np.float64)
UNETS = ("unetlittle8", "unetlittle8_odd", "unetlittle32_large", "unetlittle64", "unet", "unet3layer", "unet5layer")

# Quantity to the difference in each precision, None where there is no reference, and the tolerance of the tests.
Row = tuple[str, str, list[float | None], str]


def largest(got, expected) -> float:
    return float(np.max(np.abs(np.asarray(got, np.float64) - expected)))


def relative_l2(got, expected) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def networks() -> Iterator[Row]:
    for file, name in test_goldens.FILES.items():
        golden = rules.load(f"models/{file}.npz")
        state_dict, images = rules.golden_weights(golden), rules.golden_inputs(golden)
        module, variables = test_goldens.network(name, state_dict), torch_weights.convert(name, state_dict)
        scale = 1.0 if name == "vit" else np.abs(golden["logits"]).max()
        narrow = largest(jax.jit(module.apply)(variables, images), golden["logits"])
        with jax.enable_x64(True):
            wide = jax.jit(module.apply)(test_goldens.widened(variables), test_goldens.widened(images))
            wide = largest(wide, golden["logits_f64"])
        unit, tolerance = ("", "5e-3, 1e-10") if name == "vit" else (", of the maximum", "2e-5, 1e-10")
        yield f"models/{file}", f"logits{unit}", [narrow / scale, wide / scale], tolerance
        if "temperature_offset" in golden:
            for key in state_dict:
                if key.endswith("temperature"):
                    state_dict[key] = state_dict[key] + golden["temperature_offset"]
            got = jax.jit(module.apply)(torch_weights.convert(name, state_dict), images)
            yield f"models/{file}", "logits_soft", [largest(got, golden["logits_soft"]), None], "5e-5"


def image_gradient() -> Row:
    golden = rules.load("models/resnet18_cifar.npz")
    state_dict, images = rules.golden_weights(golden), rules.golden_inputs(golden)
    module = test_goldens.network("resnet18", state_dict)
    differences: list[float | None] = []
    for dtype, key in zip(DTYPES, ("grad_x", "grad_x_from64"), strict=True):
        with jax.enable_x64(dtype == np.float64):
            variables = jax.tree.map(lambda x: np.asarray(x, dtype), torch_weights.convert("resnet18", state_dict))  # noqa: B023
            gradient = jax.jit(jax.grad(lambda x, v: module.apply(v, x)[:, 0].sum()))(images.astype(dtype), variables)
        differences.append(relative_l2(np.asarray(gradient).transpose(0, 3, 1, 2), golden[key]))
    return "models/resnet18_cifar", "gradient to the image, relative L2", differences, "1e-4, 1e-6"


def unets() -> Iterator[Row]:
    for name in UNETS:
        golden = rules.load(f"unet/{name}.npz")
        state_dict, images = rules.golden_weights(golden), rules.golden_inputs(golden)
        module = UNet(**torch_weights.infer_options("unet", state_dict))
        variables = torch_weights.convert("unet", state_dict)
        out = np.asarray(jax.jit(module.apply)(variables, images)).transpose(0, 3, 1, 2)
        yield f"unet/{name}", "inference", [largest(out, golden["out_eval"]), None], "1e-4"
        if "out_train" in golden:
            train = jax.jit(lambda v, x, m=module: m.apply(v, x, train=True, mutable=["batch_stats"]))
            out, changed = train(variables, images)
            difference = largest(np.asarray(out).transpose(0, 3, 1, 2), golden["out_train"])
            yield f"unet/{name}", "training", [difference, None], "2e-4"
            after = torch_weights.to_torch("unet", {**variables, **changed})
            differences = [largest(after[k[6:]], v) for k, v in golden.items() if k.startswith("after/")]
            yield f"unet/{name}", "running statistics", [max(differences), None], "5e-6"


def contrastive() -> Iterator[Row]:
    golden = rules.load("losses/supcon.npz")
    values, gradients = [], []
    for dtype, suffix in zip(DTYPES, ("", "_f64"), strict=True):
        of_value, of_gradient = [], []
        with jax.enable_x64(dtype == np.float64):
            for case in json.loads(str(golden["cases"])):
                temperatures = (golden[f"{case}/{name}_f64"].astype(dtype) for name in ("tau", "base_temperature"))
                value, gradient = jax.jit(jax.value_and_grad(losses.supervised_contrastive))(
                    golden[f"{case}/features"].astype(dtype), golden[f"{case}/labels"], *temperatures
                )
                of_value.append(largest(value, golden[f"{case}/value{suffix}"]))
                of_gradient.append(largest(gradient, golden[f"{case}/grad"]))
        values.append(max(of_value))
        gradients.append(max(of_gradient))
    yield "losses/supcon", "value", values, "2e-5, 1e-12"
    yield "losses/supcon", "gradient", [gradients[0], None], "5e-6"


def binary_cross_entropy() -> Iterator[Row]:
    golden = rules.load("losses/bce.npz")
    labels, safe, identity = golden["logits_yhat"], golden["logits_f32_safe"], np.arange(10)
    values, gradients = [], []
    for dtype, suffix in zip(DTYPES, ("", "_f64"), strict=True):
        with jax.enable_x64(dtype == np.float64):
            logits = golden["logits"].astype(dtype)
            rows = jax.jit(
                jax.vmap(lambda row, label: losses.mapped_binary_cross_entropy(row[None], label[None], identity))
            )(logits, labels)
            gradient = jax.jit(jax.grad(losses.mapped_binary_cross_entropy))(logits, labels, identity)
        values.append(largest(rows[safe], golden[f"logits_row_loss{suffix}"][safe]))
        gradients.append(largest(gradient[safe], golden[f"logits_grad{suffix}"][safe]))
    yield "losses/bce", "loss of a row, safe rows", values, "1e-5, 1e-12"
    yield "losses/bce", "gradient, safe rows", gradients, "1e-6, 1e-12"


def objective() -> Iterator[Row]:
    step = test_objective.step()
    for variant in test_objective.LOSSES:
        parts, gradients, vanishing = [], [], []
        for dtype, suffix in zip(DTYPES, ("", "_f64"), strict=True):
            with jax.enable_x64(dtype == np.float64):
                (total, aux), gradient = test_objective.run(variant, dtype, gradient=True)
                got = {"total": total, "main": aux["classification"], "supcon": aux["contrastive"]}
                parts.append(max(largest(value, step[f"{variant}/{name}{suffix}"]) for name, value in got.items()))
                if variant == "bce" and dtype == np.float32:
                    transformed = largest(np.asarray(aux["transformed"]).transpose(0, 3, 1, 2), step["x_adv"])
                state_dict = torch_weights.to_torch("unet", {"params": gradient, "batch_stats": aux["batch_stats"]})
            prefix = f"{variant}/grad_from64/"
            relative, absolute = [], []
            for key in (key for key in step if key.startswith(prefix)):
                name, expected = key.removeprefix(prefix), step[key].astype(np.float64)
                if np.linalg.norm(expected) < test_objective.VANISHING:
                    absolute.append(np.max(np.abs(state_dict[name])))
                else:
                    relative.append(relative_l2(state_dict[name], expected))
            gradients.append(float(max(relative)))
            vanishing.append(float(max(absolute)))
        yield "losses/refine_step", f"{variant}: total and its parts", parts, "2e-5, 1e-8"
        yield "losses/refine_step", f"{variant}: gradient, relative L2, worst parameter", gradients, "4e-2, 1e-5"
        yield "losses/refine_step", f"{variant}: gradients that vanish", vanishing, "1e-5, 1e-12"
        if variant == "bce":
            yield "losses/refine_step", "T(x)", [transformed, None], "3e-4"


def trajectory() -> Iterator[Row]:
    golden = rules.load("losses/refine_trajectory.npz")
    names = json.loads(str(golden["param_names_json"]))
    first, second, later, lengths, statistics = [], [], [], [], []
    for dtype, suffix, prefix in zip(DTYPES, ("", "_f64"), ("after/", "after_from64/"), strict=True):
        with jax.enable_x64(dtype == np.float64):
            metrics, after = test_trajectory.run(golden, dtype)
        error = np.abs(metrics["loss"] - golden[f"total{suffix}"])
        for rows, value in ((first, error[0]), (second, error[1]), (later, error[2:].max())):
            rows.append(float(value))
        got = [np.linalg.norm(after[name].astype(np.float64)) for name in names]
        lengths.append(largest(got, golden[f"param_l2{suffix}"]))
        keys = [key for key in golden if key.startswith(prefix)]
        statistics.append(max(largest(after[key.removeprefix(prefix)], golden[key]) for key in keys))
    yield "losses/refine_trajectory", "total, step 0", first, "2e-5, 1e-8"
    yield "losses/refine_trajectory", "total, step 1", second, "5e-4, 1e-8"
    yield "losses/refine_trajectory", "total, steps 2 to 7", later, "5e-2, 1e-8"
    yield "losses/refine_trajectory", "length of every parameter after 8 steps", lengths, "3e-2, 1e-8"
    yield "losses/refine_trajectory", "running statistics after 8 steps", statistics, "1.5e-1, 1e-6 relative"


def main() -> None:
    print("| golden | quantity | float32 | float64 | tolerances |")
    print("| --- | --- | --- | --- | --- |")
    with jax.default_matmul_precision("float32"):
        for rows in (
            networks(),
            [image_gradient()],
            unets(),
            contrastive(),
            binary_cross_entropy(),
            objective(),
            trajectory(),
        ):
            for golden, quantity, differences, tolerance in rows:
                shown = " | ".join("" if value is None else f"{value:.1e}" for value in differences)
                print(f"| {golden} | {quantity} | {shown} | {tolerance} |", flush=True)


if __name__ == "__main__":
    main()
