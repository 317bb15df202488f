import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.ops import losses

LOGITS = np.array([-30.0, -5, -1, -1e-3, 0, 1e-3, 0.5, 4, 30], np.float32)


def oracle_focal(x, t, alpha, gamma):
    """Equation 5 in float64, with the sigmoid written out."""
    margin = x.astype(np.float64) * (1 if t else -1)
    log_pt = -np.log1p(np.exp(-margin))
    other = 1 / (1 + np.exp(margin))
    return -(alpha if t else 1 - alpha) * other**gamma * log_pt


@pytest.mark.parametrize("target", [0.0, 1.0])
@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0), (0.9, 0.5)])
def test_focal_loss_equals_equation_five_in_float64(target, alpha, gamma):
    targets = np.full_like(LOGITS, target)
    got = losses.sigmoid_focal_loss(jnp.array(LOGITS), jnp.array(targets), alpha=alpha, gamma=gamma)
    expected = oracle_focal(LOGITS, target, alpha, gamma)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-37)  # XLA flushes denormals


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_focal_gradient_equals_pytorch_autograd_of_the_definition(target):
    torch = pytest.importorskip("torch", reason="the oracle of the gradient is PyTorch")
    x = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    log_p, log_q = torch.nn.functional.logsigmoid(x), torch.nn.functional.logsigmoid(-x)
    log_pt, log_other = (log_p, log_q) if target else (log_q, log_p)
    weight = 0.25 if target else 0.75
    (-weight * torch.exp(2 * log_other) * log_pt).sum().backward()
    targets = jnp.full(LOGITS.shape, target)
    got = jax.grad(lambda x: losses.sigmoid_focal_loss(x, targets).sum())(jnp.array(LOGITS))
    np.testing.assert_allclose(got, x.grad.numpy(), rtol=1e-4, atol=1e-37)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_is_finite_and_exact_at_huge_logits(gamma):
    logits, targets = jnp.array([1e4, -1e4, 1e4, -1e4]), jnp.array([1.0, 1, 0, 0])
    f = lambda x: losses.sigmoid_focal_loss(x, targets, gamma=gamma)
    np.testing.assert_allclose(f(logits), [0, 0.25e4, 0.75e4, 0], rtol=1e-6)
    gradient = jax.grad(lambda x: f(x).sum())(logits)
    np.testing.assert_allclose(gradient, [0, -0.25, 0.75, 0], rtol=1e-6)


def test_smooth_l1_equals_pytorch_in_value_and_gradient():
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    error = np.array([-1e4, -2, -0.3, -0.1, 0, 0.05, 0.3, 1, 1e4], np.float32)
    for beta in (0.3, 1.0):
        x = torch.tensor(error, requires_grad=True)
        expected = torch.nn.functional.smooth_l1_loss(
            x, torch.zeros_like(x), beta=beta, reduction="none"
        )
        expected.sum().backward()
        got = losses.smooth_l1(jnp.array(error), beta=beta)
        np.testing.assert_allclose(got, expected.detach().numpy(), rtol=1e-6)
        gradient = jax.grad(lambda e, b=beta: losses.smooth_l1(e, beta=b).sum())(jnp.array(error))
        np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=1e-6)


def test_smooth_l1_rejects_a_beta_of_zero():
    with pytest.raises(ValueError, match="beta must be positive, got 0"):
        losses.smooth_l1(jnp.zeros(3), beta=0.0)


def test_giou_loss_falls_to_zero_as_gradient_descent_moves_a_box_onto_its_target():
    target = jnp.array([20.0, 20, 40, 50])
    value_and_grad = jax.jit(jax.value_and_grad(losses.giou_loss))
    box = jnp.array([0.0, 0, 10, 10])  # apart: the IoU alone would have no gradient
    first, _ = value_and_grad(box, target)
    for step in range(1000):
        value, gradient = value_and_grad(box, target)
        box = box - 100 * 0.995**step * gradient
    assert first > 1
    assert value < 0.05
