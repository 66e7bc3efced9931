"""What methods still to come need of the contracts: agents that sample a posterior or take a gradient step between episodes, memories of several
parts, and test tasks of more episodes than training tasks have"""
import dataclasses, json

import pytest
import torch

from ldm_nb.core.seeds import generators
from ldm_nb.evaluation.evaluate import evaluate, outcome, with_episodes
from ldm_nb.evaluation.motion import watch
from ldm_nb.lab import presets
from ldm_nb.lab.cli import main
from ldm_nb.methods import rl2
from ldm_nb.policy.policy import Agent, Noise, sample
from ldm_nb.training.rollout import rollout
from ldm_nb.worlds.gridworld import gridworld
from ldm_nb.worlds.tasks import Box, Discrete, Family, World, finite


def lines(*xs): return finite(torch.tensor(xs)[:, None])

def slope():
    "The reward is the action times a hidden number; an episode ends early where the action is negative"
    def step(state, task, action): return state + 1, (action*task)[..., 0], action[..., 0] < 0
    return World(Family('slope', ('theta',), dict(train=lines(1., -2.), test=lines(.5, 3.))), 1, Box(1), 4, 3,
                 lambda task, u: 0*task, step, lambda state: state, deaths=True)


# PEARL, thrown away: z is sampled from a product of Gaussian factors, one a transition

VAR = .25  # of one factor

def pearl(seen, action=None):
    "Acts by its z (or by a script); a transition is a factor about reward/action"
    def start(B, noise): return dict(z=noise, count=torch.zeros_like(noise), total=torch.zeros_like(noise))
    def act(h, obs, u): return torch.ones_like(h['z']) if action is None else action(h, obs), h['z'][..., 0]
    def between(h, e, noise):
        seen.append((e, noise))
        ratio, w = (e.reward/e.action[..., 0])[..., None], e.valid[..., None].float()
        count, total = h['count'] + w.sum(1), h['total'] + (ratio*w).sum(1)
        return dict(z=total/count + (VAR/count).sqrt()*noise, count=count, total=total)
    return Agent(start, act, lambda h, *_: h, Noise(start=('normal', 1), episode=('normal', 1)), between)

def test_a_posterior_is_sampled_between_episodes():
    "The prior's z in the first episode; then the posterior of all transitions so far, with noise of each episode"
    world, seen = slope(), []
    traj = evaluate(world, pearl(seen), generators([3, 7])['eval'], 'test')
    z, theta = traj.value, world.family.splits['test'].tasks[:, 0]
    assert [e.index.unique().tolist() for e, _ in seen] == [[0], [1]]  # not after the last episode
    for k, n in ((0, 4), (1, 8)):
        want = theta + (VAR/n)**.5*seen[k][1][..., 0]
        for t in range(4*k + 4, 4*k + 8): assert torch.allclose(z[:, t], want)
    assert not torch.equal(seen[0][1], seen[1][1]) and (z[:, 0] == z[:, 3]).all() and (z[:, 0] != z[:, 4]).all()
    again = evaluate(world, pearl([]), generators([7])['eval'], 'test')
    assert torch.equal(again.value[0], z[1])  # a seed alone, whatever its neighbours

def test_episodes_of_different_lengths():
    "A worker whose episode ends early adapts at once, the others go on; its next episode counts its own steps only"
    world, seen = slope(), []
    def script(h, obs): # the second worker ends its first episode after two steps
        stop = (obs[..., 0] == 1) & (h['count'][..., 0] == 0) & (torch.arange(2) == 1)
        return torch.where(stop, -1., 1.)[..., None]
    task = world.family.splits['test'].tasks.expand(2, -1, -1)
    noise = dict(start=torch.zeros(2, 2, 1), episode=torch.zeros(2, 3, 2, 1))
    traj = rollout(world, pearl(seen, script), task, torch.zeros(2, 12, 2), noise=noise)
    assert [int(e.valid[0, :, 1].sum()) for e, _ in seen][:3] == [2, 2, 4]
    assert torch.equal(traj.value[0, :3, 0], torch.zeros(3)) and traj.value[0, 2, 1] == 3. == traj.value[0, 5, 1]
    assert traj.end[0, :, 1].nonzero().flatten().tolist()[:3] == [1, 5, 9] and traj.died[0, :, 1].nonzero().flatten().tolist() == [1]

def test_films_adapt_too():
    world = slope()
    noise = dict(start=torch.zeros(2, 2, 1), episode=torch.zeros(2, 3, 2, 1))
    seen, task = [], world.family.splits['test'].tasks.expand(2, -1, -1)
    motion = watch(world, pearl(seen), task, None, noise)
    assert len(seen) == 2 and motion.reward.shape == (2, 12, 2)


# An inner policy-gradient step, thrown away: parameters of the policy are the memory, one set a worker

def arms():
    "A bandit of two arms; the task is the arm that pays"
    def step(state, task, action): return state, (action == task[..., 0]).float(), None
    return World(Family('arms', ('arm',), dict(train=lines(0.), test=lines(1.))), 1, Discrete(2), 5, 4, lambda task, u: 0*task, step, lambda s: s)

RATE = .5

def gradient_step(h, e, noise):
    "One step on mean[log pi(a) r] by autograd, each worker's own parameters"
    with torch.enable_grad():
        theta = h.detach().requires_grad_()
        logp = theta.log_softmax(-1)[:, None].expand(-1, e.reward.shape[1], -1, -1).gather(-1, e.action[..., None])[..., 0]
        gain = (logp*e.reward*e.valid).sum(1)/e.valid.sum(1)
        g, = torch.autograd.grad(gain.sum(), theta)
    return (theta + RATE*g).detach()

def test_a_gradient_step_between_episodes():
    world = arms()
    agent = Agent(lambda B, noise: torch.zeros(2, B, 2), lambda h, obs, u: (sample(h, u), h[..., 1]), lambda h, *_: h, Noise(step=('uniform',)), gradient_step)
    traj = evaluate(world, agent, generators([3, 7])['eval'], 'all')
    theta = torch.zeros(2, 2, 2)
    for k in range(3):
        a, r = (x[:, 5*k:5*k + 5] for x in (traj.action, traj.reward))
        onehot = torch.nn.functional.one_hot(a, 2).float()
        theta = theta + RATE*((onehot - theta.softmax(-1)[:, None])*r[..., None]).mean(1)
        assert torch.allclose(traj.value[:, 5*k + 5], theta[..., 1], atol=1e-6)
    first, last = (outcome(world, traj)['returns'][..., k] for k in (0, 3))
    assert traj.action.float().std() > 0 and first.shape == last.shape == (2, 2)


# How many episodes a test task has, and when an agent adapts

@dataclasses.dataclass(frozen=True)
class Slow(rl2.RL2):
    "RL2 whose agent adapts, in the last evaluation only"
    adapt_at: str = 'last'

@pytest.mark.parametrize('how', ['last', 'all'])
def test_test_episodes_and_expensive_adaptation(how, tmp_path, monkeypatch, capsys):
    "More episodes of a test task than training has, in metrics, tables and records; adaptation where the setting says"
    called = []
    def agent(cfg, state, greedy=False):
        def between(h, e, noise): called.append(len(e.valid)); return h
        return dataclasses.replace(rl2.agent(cfg, state, greedy), between=between if greedy else None)
    method = rl2.METHOD._replace(name='slow', config=Slow, agent=agent, test_episodes=6)
    monkeypatch.setitem(presets.METHODS, 'slow', presets.Entry(method, 'RL2, slowly'))
    run = tmp_path/'run'
    def ldm(*argv):
        with pytest.raises(SystemExit) as e: main([str(a) for a in argv])
        assert e.value.code == 0, capsys.readouterr().err
        return capsys.readouterr().out
    ldm('train', 'gridworld', '--method', 'slow', '--workers', 4, '--seeds', '3', '--frames', 3*480, '--adapt-at', how, '--out', run)
    rows = [json.loads(l) for l in (run/'metrics.jsonl').read_text().splitlines()]
    assert [r['episodes'] for r in rows] == [6]*len(rows) and len(rows[-1]['per_task'][0]) == 6
    assert [r.get('adapted', True) for r in rows] == [how == 'all']*(len(rows) - 1) + [True] and len(rows) == 2
    assert called
    assert 'episode 6' in ldm('evaluate', run)
    record = tmp_path/'data'
    ldm('record', run, '--data', record)
    import gzip
    assert json.loads(gzip.open(record/'gridworld-slow.jsonl.gz').read())['episodes'] == 6

def test_more_episodes():
    world = with_episodes(gridworld(), 20)
    assert world.steps == 600 and with_episodes(gridworld(), None).episodes == 4
