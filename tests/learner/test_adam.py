"""Our call of Adam's kernel, against the class of torch that wraps it."""

import subprocess
import sys

import torch

from learner.adam import Adam


def test_it_takes_the_same_steps_as_torchs_own_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(1_001, generator=generator)
    theirs = torch.nn.Parameter(ours.clone())
    optimizer, reference = Adam(ours, 0.003), torch.optim.Adam([theirs], lr=0.003, fused=True)
    for scale in (1.0, 1e-6, 1e3, 0.0, 2.0):
        gradient = scale * torch.randn(1_001, generator=generator)
        theirs.grad = gradient.clone()
        optimizer.step(gradient)
        reference.step()
        assert torch.equal(ours, theirs)
    state = reference.state[theirs]
    assert optimizer.moments.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in optimizer.moments.items())


def test_a_learner_does_not_load_torchs_compiler() -> None:
    """It would be a second of every start, and memory that nothing uses."""
    code = (
        "import sys, torch\n"
        "from learner.adam import Adam\n"
        "Adam(torch.zeros(3), 0.1).step(torch.ones(3))\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
