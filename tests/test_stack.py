"""What no single page can show: a stack of seeds is its seeds, a resumed run is the same run, a bad seed stays alone."""
import math
from dataclasses import replace

import pytest
import torch

from ldm_nb.methods import ldm, rl2
from ldm_nb.core.seeds import flat, generators, take
from ldm_nb.belief.encoder import advance, joined_layers, heads
from ldm_nb.evaluation.evaluate import evaluate, outcome
from ldm_nb.worlds.gridworld import gridworld
from ldm_nb.mixture.mixture import Mixture
from ldm_nb.policy.policy import Agent, policy
from ldm_nb.lab.presets import METHODS as ALL, ROBOT_WORLDS, WORLDS, override, preset, refusal, settings
from ldm_nb.lab.checkpoints import load_checkpoint, save_checkpoint
from ldm_nb.training.experience import Experience
from ldm_nb.training.trainer import Diverged, Progress, accept, train

WORLD = gridworld()
METHODS = {k: e for k, e in ALL.items() if not refusal('gridworld', k)}
SMALL = dict(posteriors=6, transitions=5, vae_batch=4, buffer_size=40, precollect=0)  # everything takes part from the start

FEW = dict.fromkeys(('emaml', 'promp'), dict(workers=8, rollouts=4))  # eight tasks of four rollouts; the paper's sizes with --slow


def settings_of(method, name='paper', **changes):
    cfg = preset('gridworld', method, name)
    return override(cfg, **{k: v for k, v in (SMALL | changes).items() if k in settings(cfg)})

def run(method, cfg, seeds, iterations, **kw):
    m, gens = METHODS[method].method, generators(seeds)
    return train(m, cfg, WORLD, gens, Progress(seeds, m.init(cfg, WORLD, gens)), iterations, 100, **kw), gens

def same(a, b):
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    for k in a: assert torch.equal(a[k], b[k]), k


def stacked():
    "Every method and preset that differs; small, and with --slow as they are"
    for m, n in [(m, n) for m in METHODS for n in ('paper', 'release') if n == 'paper' or settings_of(m, n) != settings_of(m)]:
        yield pytest.param(m, n, FEW.get(m, {}), id=f'{m}-{n}')
        if m in FEW: yield pytest.param(m, n, {}, id=f'{m}-{n}-whole', marks=pytest.mark.slow)

@pytest.mark.parametrize('method,name,changes', list(stacked()))
def test_seed_in_a_stack_is_the_seed_alone(method, name, changes):
    cfg = settings_of(method, name, **changes)
    seen = {}
    alone, _ = run(method, cfg, [7], 5, tick=lambda p, m: seen.setdefault(p.iteration, m))
    def tick(p, m):
        for k, v in m.items(): assert torch.equal(v[1:2], seen[p.iteration][k]), (p.iteration, k)
    stacked, _ = run(method, cfg, [3, 7, 11], 5, tick=tick)
    same(take(stacked.state, 1), alone.state)

@pytest.mark.parametrize('change', [dict(posteriors=0, transitions=0, dropout_mask='shared'), dict(posteriors=0, transitions=0, vae_batch=2),
                                    dict(weights='per-dimension', mixed='means', beta=2., imagination_dropout=False),
                                    dict(transitions=0, counted='places', imagined_task='fixed', imagined_rewards='one-goal'),
                                    dict(imagined_task='fixed', imagined_rewards='drawn', p_drop=0.), dict(imagined_rewards='drawn', mixed='means'),
                                    dict(imagined_task='fixed', imagined_rewards='any-goal', imagination_dropout=False)])
def test_ldm_variants_are_their_seeds_too(change):
    cfg = settings_of('ldm', **change)
    alone, _ = run('ldm', cfg, [7], 2)
    stacked, _ = run('ldm', cfg, [7, 3], 2)
    same(take(stacked.state, 0), alone.state)

def test_two_seeds_differ():
    p, _ = run('rl2', settings_of('rl2'), [1, 2], 1)
    w = p.state['params']['encoder']['gru']['w_h']
    assert not torch.equal(w[0], w[1])


def test_ldm_without_mixture_is_rl2():
    cfg = settings_of('ldm', mixture_workers=0)
    a, _ = run('ldm', cfg, [5], 6)
    b, _ = run('rl2', rl2.RL2(), [5], 6)
    same({k: a.state['params'][k] for k in ('encoder', 'heads')}, b.state['params'])


@pytest.mark.parametrize('method', METHODS)
def test_resumed_is_the_same_run(method, tmp_path):
    cfg, m = settings_of(method, **FEW.get(method, {})), METHODS[method].method
    whole, _ = run(method, cfg, [3, 7], 6)
    half, gens = run(method, cfg, [3, 7], 4)
    held = 40 if 'buffer' in half.state else 0
    path = save_checkpoint(tmp_path, half, gens, held)
    again = generators([3, 7])
    fresh = m.init(cfg, WORLD, again)
    p = load_checkpoint(path, [3, 7], again, fresh.get('buffer'))
    assert p.iteration == 4 and p.count == half.count
    train(m, cfg, WORLD, again, p, 6, 100)
    same(p.state, whole.state)
    same(p.sums, whole.sums)


def poisoned(bad):
    "RL2 whose update gives one seed a loss that is not finite"
    def update(cfg, world, state, traj, noise, i):
        state, metrics = rl2.update(cfg, world, state, traj, noise, i)
        if i == 2 and 'value' in metrics:
            hit = torch.arange(len(metrics['value'])) == bad
            metrics = dict(metrics, value=torch.where(hit, math.nan, metrics['value']))
            state = dict(state, params=dict(state['params'], heads={**state['params']['heads'], 'value': {k: torch.where(hit[:, None, None], math.nan, v)
                                                                                                     for k, v in state['params']['heads']['value'].items()}}))
        return state, metrics
    return rl2.METHOD._replace(update=update)

def test_a_diverging_seed_is_frozen_and_the_others_go_on():
    cfg, m = rl2.RL2(), poisoned(1)
    gens = generators([3, 7])
    p = train(m, cfg, WORLD, gens, Progress([3, 7], m.init(cfg, WORLD, gens)), 5, 100)
    assert p.frozen == {7: dict(iteration=2, term='value')}
    good, _ = run('rl2', cfg, [3], 5)
    same(take(p.state, 0), good.state)
    before, _ = run('rl2', cfg, [7], 2)
    same(take(p.state, 1), before.state)

def test_no_seed_left():
    gens, m = generators([3]), poisoned(0)
    p = Progress([3], m.init(rl2.RL2(), WORLD, gens))
    with pytest.raises(Diverged, match='seed 3: value not finite in iteration 2'): train(m, rl2.RL2(), WORLD, gens, p, 5, 100)
    assert p.iteration == 2


@pytest.mark.parametrize('name', [w for w in WORLDS if w not in ROBOT_WORLDS])
def test_splits_are_disjoint_and_complete(name):
    s = WORLDS[name]().family.splits
    cells = {k: set(map(tuple, v.tasks.tolist())) for k, v in s.items()}
    tests = [k for k in cells if k.startswith('test') and k != 'test'] or ['test']
    assert cells['train'].isdisjoint(cells['test'])
    assert all(cells[a].isdisjoint(cells[b]) for a in tests for b in tests if a != b)
    assert set().union(*(cells[k] for k in tests)) == cells['test']
    assert cells['train'] | cells['test'] == cells['all'] == cells['eval'] and len(cells['all']) == 45
    u = torch.rand(20_000, 1)
    assert set(map(tuple, s['train'].sample(u).tolist())) == cells['train']


def test_mixture_workers_never_reach_the_buffer():
    "Each iteration stores the tasks of the normal workers, and only those, in their order"
    cfg, gens, seen = settings_of('ldm', buffer_size=100), generators([0]), []
    def collect(*a):
        seen.append(ldm.METHOD.collect(*a).traj)
        return Experience(seen[-1])
    m = ldm.METHOD._replace(collect=collect)
    p = train(m, cfg, WORLD, gens, Progress([0], m.init(cfg, WORLD, gens)), 3, 100)
    for i, traj in enumerate(seen):
        codes = WORLD.codec.pack(traj.obs, None, None, None, traj.task[:, 0])
        assert torch.equal(p.state['buffer'][:, 14*i:14*i + 14], codes[:, :14])
        stored = set(map(tuple, p.state['buffer'][0, :42].tolist()))
        assert not stored & set(map(tuple, codes[0, 14:].tolist()))
        assert torch.equal(WORLD.codec.unpack(codes[:, :14]).reward, traj.reward[:, :, :14])
        assert not torch.equal(traj.reward[:, :, 14:], traj.true_reward[:, :, 14:])
    assert not p.state['buffer'][0, 42:].any()


def known_decoder(state, weights):
    "A decoder whose logit is a weighted sum of the first latent and the x of the state arrived at (both not negative)"
    dec = state['params']['vae']['decoder']
    for k, v in flat(dec).items(): v.zero_()
    dec['state']['w'][:, 0, 0] = 1
    dec['layers']['0']['w'][:, 0, 0], dec['layers']['0']['w'][:, 32, 0] = weights
    dec['layers']['1']['w'][:, 0, 0] = dec['out']['w'][:, 0, 0] = 1

@pytest.mark.parametrize('weights', [(0., 1.), (1., 0.), (.5, .25)])
def test_imaginary_rewards_are_the_decoders(weights):
    "Mixture workers are shown the decoder's answer for the mixed latent at the state they arrive at, and nobody else is"
    cfg = settings_of('ldm', mixed='means', imagination_dropout=False)
    gens = generators([0, 1])
    state = ldm.init(cfg, WORLD, gens)
    mu = state['params']['vae']['encoder']['mu']
    mu['w'].zero_(); mu['b'].fill_(.7)  # every posterior has mean 0.7, and so has every mixture: weights sum to one
    known_decoder(state, weights)
    traj = ldm.METHOD.collect(cfg, WORLD, state, ldm.draw_noise(cfg, WORLD, gens, 0)).traj
    want = WORLD.rewards.imagine(weights[0]*.7 + weights[1]*traj.after[:, :, 14:, 0])
    assert torch.allclose(traj.reward[:, :, 14:], want, atol=1e-5)
    assert torch.equal(traj.reward[:, :, :14], traj.true_reward[:, :, :14])
    h = torch.zeros(2, 16, 128)
    for t in range(3): h = advance(joined_layers(state['params']['encoder']), h, traj.after[:, t], traj.action[:, t], traj.reward[:, t])
    context = torch.cat(heads(state['params']['encoder'], h), -1)
    assert torch.allclose(policy(state['params']['heads'], context)[1], traj.value[:, 3], atol=1e-5)  # Encoder-p saw them


def test_scripted_tour_meets_three_test_goals():
    "The 22-step tour of all training goals, then a rest: exactly three test goals are reached in every episode"
    moves = [1, 1, 2, 2, 3, 3] + [2]*4 + [1]*6 + [4]*6
    assert len(moves) == 22
    t = iter(())
    def act(h, obs, u):
        nonlocal t
        a = moves[h] if h < 22 else 0
        return torch.full(u.shape, a), torch.zeros(u.shape)
    agent = Agent(lambda B, noise=None: 0, act, lambda h, obs, a, r: (h + 1) % 30)
    out = outcome(WORLD, evaluate(WORLD, agent, seeds=1))
    tasks = WORLD.family.splits['eval'].tasks
    for split, want in (('train', 18), ('test', 3)):
        mine = WORLD.family.splits[split].contains(tasks)
        assert out['reached'][0, mine].sum(0).tolist() == [want]*4
