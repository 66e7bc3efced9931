"""What a compiler or a recorded graph may change: nothing but the time. The slow ones: pytest --slow tests/test_compile.py"""
from dataclasses import replace

import pytest
import torch

from ldm_nb.lab.cli import can_compile
from ldm_nb.core.seeds import flat, generators, tree_map
from ldm_nb.core.devices import compiling
from ldm_nb.lab.graphs import Recorded, no_graph, compiler_trouble
from ldm_nb.lab.presets import METHODS, WORLDS, override, preset, settings
from ldm_nb.training.trainer import Progress, iterate, train

WORLD = WORLDS['gridworld']()
SMALL = dict(vae_batch=4, buffer_size=40, precollect=0)


def settings_of(method, **more):
    cfg = preset('gridworld', method)
    return override(cfg, **{k: v for k, v in (SMALL | more).items() if k in settings(cfg)})

def double(x):
    "A tree in double precision, where its numbers are floats"
    if isinstance(x, torch.Tensor): return x.double() if x.is_floating_point() else x
    if isinstance(x, dict): return {k: double(v) for k, v in x.items()}
    if isinstance(x, tuple): return type(x)(*map(double, x)) if hasattr(x, '_fields') else tuple(map(double, x))
    return [double(v) for v in x] if isinstance(x, list) else x

def stack_of(cfg, method, seeds=(3, 7), device='cpu'):
    gens = generators(list(seeds), device)
    return gens, Progress(list(seeds), method.init(cfg, WORLD, gens))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['ldm', 'varibad', 'rl2'])
def test_compiled_updates_are_eager_ones(name):
    "Twenty recorded rollouts, each learnt from with and without the compiler, in double precision"
    if compiler_trouble('cpu'): pytest.skip('no compiler')
    method, cfg = METHODS[name].method, settings_of(name)
    gens, p = stack_of(cfg, method)
    fine = replace(WORLD, codec=WORLD.codec._replace(unpack=lambda code: double(WORLD.codec.unpack(code))))
    worst = 0.
    for i in range(20):
        noise = method.draw(cfg, WORLD, gens, i)
        traj = method.collect(cfg, WORLD, p.state, noise)
        states = []
        for on in (False, True):
            state = {k: tree_map(lambda x: double(x).clone(), v) for k, v in p.state.items()}
            with compiling(on): states.append(method.update(cfg, fine, state, double(traj), double(noise), i)[0])
        for a, b in zip(*(flat(s).values() for s in states)): worst = max(worst, (a.double() - b.double()).abs().max().item())
        p.state = method.update(cfg, WORLD, p.state, traj, noise, i)[0]
    assert worst < 1e-9

@pytest.mark.parametrize('name,more', [('ldm', {}), ('ldm', dict(buffer='frozen', posteriors=6)), ('varibad', dict(precollect=5000)), ('rl2', {})])
def test_a_recorded_iteration_is_the_iteration(name, more):
    "Static memory, noise copied in, soundness decided by tensors: the same run as the trainer's, to the last bit"
    method, cfg = METHODS[name].method, settings_of(name, **more)
    (a, p), (b, q) = (stack_of(cfg, method) for _ in range(2))
    train(method, cfg, WORLD, a, p, iterations=5, every=100)
    train(method, cfg, WORLD, b, q, iterations=5, every=100, step=Recorded(method, cfg, WORLD, b, record=no_graph, warm=1).step)
    for k, x in flat(p.state).items(): assert torch.equal(x, flat(q.state)[k]), k
    for k in p.sums: assert torch.equal(p.sums[k], q.sums[k]), k

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@pytest.mark.parametrize('name,more', [('ldm', {}), ('ldm', dict(buffer='frozen')), ('varibad', {}), ('rl2', {})])
def test_a_graph_replays_the_iteration(name, more):
    "On a GPU the same iterations, as they are and from a graph, end with the same weights and metrics to rounding"
    method, cfg = METHODS[name].method, settings_of(name, **more)
    (a, p), (b, q) = (stack_of(cfg, method, device='cuda') for _ in range(2))
    recorded = Recorded(method, cfg, WORLD, b, warm=3)
    for i in range(8):
        one, two = iterate(method, cfg, WORLD, a, p), recorded.step(q)
        for k in one: assert torch.allclose(one[k], two[k], rtol=1e-3, atol=1e-4), (i, k)
        p.iteration += 1; q.iteration += 1
    for k, x in flat(p.state).items(): assert torch.allclose(x.double(), flat(q.state)[k].double(), atol=1e-4), k

def test_no_compiler_is_one_line(monkeypatch, capsys):
    "Where no compiler works, a run says so and goes on without"
    def missing(*_, **__): raise RuntimeError('No working C++ compiler found\nand much more')
    monkeypatch.setattr(torch, 'compile', missing)
    assert not can_compile('cpu', WORLD, None)
    assert capsys.readouterr().err == \
        'ldm: no compiler works on this machine (RuntimeError: No working C++ compiler found); continuing without --compile\n'
