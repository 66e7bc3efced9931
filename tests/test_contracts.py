"""What methods still to come need of the contracts: agents that sample a posterior or take a gradient step between episodes, memories of several
parts, and test tasks of more episodes than training tasks have"""
import dataclasses, json

import numpy as np
import pytest
import torch

from ldm_nb.core.seeds import flat, generators, take
from ldm_nb.evaluation.compare import read_curves
from ldm_nb.evaluation.evaluate import evaluate, outcome, with_episodes
from ldm_nb.evaluation.motion import watch
from ldm_nb.core.errors import BadInput
from ldm_nb.lab import jobs, presets
from ldm_nb.lab.checkpoints import load_checkpoint, save_checkpoint
from ldm_nb.lab.crew import Crew
from ldm_nb.lab.duet import Duet
from ldm_nb.lab.opened import load
from ldm_nb.lab.cli import main
from ldm_nb.methods import rl2
from ldm_nb.policy.policy import Agent, Noise, sample
from ldm_nb.training.rollout import rollout
from ldm_nb.training.trainer import Progress, train
from ldm_nb.worlds.gridworld import gridworld
from ldm_nb.worlds import registry
from ldm_nb.worlds.envs import imagined
from ldm_nb.worlds.tasks import Box, Discrete, Family, Map, World, finite


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
    assert len(seen) == 4  # never after the last episode of a task

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
    assert [r['adapted'] for r in rows] == [how == 'all']*(len(rows) - 1) + [True] and len(rows) == 2
    assert all(r['unadapted_test'] == r['test'] for r in rows) # its adaptation changes nothing
    assert called
    assert 'episode 6' in ldm('evaluate', run)
    record = tmp_path/'data'
    ldm('record', run, '--data', record)
    import gzip
    stored = json.loads(gzip.open(record/'gridworld-slow.jsonl.gz').read())
    assert stored['episodes'] == 6 and stored['adapted'] == [how == 'all', True] and stored['unadapted_train'] == stored['train']
    assert read_curves(record/'gridworld-slow.jsonl.gz', [3]).values['adapted'].tolist() == [[how == 'all', 1.]]

def test_more_episodes():
    world = with_episodes(gridworld(), 20)
    assert world.steps == 600 and with_episodes(gridworld(), None).episodes == 4


# One form of each method: either learner on either kind of world, whole tasks or parts of them

PPO = dict(ratio_clip=.1, old_values='recomputed', shuffled=True, minibatches=4, epochs=2, value_loss='huber', optimiser='adam', scale_observations=True,
           scale_rewards=True, scale_advantages=True, state_conditioned=True, encoder_loss='elbo', precollect=0, average=.9)
A2C = dict(ratio_clip=0., shuffled=False, minibatches=1, epochs=1, value_loss='squared', optimiser='rmsprop', scale_observations=False,
           scale_rewards=False, scale_advantages=False)
SMALL = dict(workers=4, posteriors=4, transitions=3, vae_batch=2, buffer_size=12, mixture_workers=1, vae_updates=1, rollouts=4)
WAYS = {  # world, settings
    'ppo': ('gridworld', PPO), 'parts': ('gridworld', dict(chunk=60, old_values='recomputed', encoder_loss='elbo', precollect=0)),
    'deaths': ('cliff', {}), 'a2c': ('cheetah-vel', A2C), 'cut': ('gridworld', PPO | dict(chunk=30, episode_end='cut', task_end='bootstrap'))}
METHODS = [k for k, e in presets.METHODS.items() if not e.oracle and not presets.refusal('gridworld', k)]
OWN = dict(pearl=dict(chunk=90, workers=2, prior_steps=30, initial_steps=30, replay_size=600, updates=2, meta_batch=2, context_batch=5, task_batch=6,
                      hidden=(8, 8), context_layers=(8,), train_tasks=5),
           mql=dict(chunk=30, workers=2, initial_steps=30, replay_size=300, updates=2, rl_batch=8, history=4, context_units=8, hidden=(8,), new_updates=2, old_updates=2,
                    old_batch=8, snapshot=30, explore_episodes=1, train_tasks=5),
           mier=dict(chunk=90, workers=2, prior_steps=30, initial_steps=30, replay_size=600, first_size=200, updates=2, meta_batch=2, task_batch=6, hidden=(8, 8),
                     model_layers=(8,), explore_episodes=1, model_updates=2, rl_updates=2, adapt_batch=8, real_steps=2, train_tasks=5))  # method -> settings of its own

def cliff():
    "A corridor with an abyss at its left end"
    def step(cell, goal, action):
        cell = cell + action[..., None]*2 - 1
        return cell.clamp(0, 8), (cell == goal).all(-1).float(), (cell < 1)[..., 0]
    return World(Family('cliff', ('goal',), dict(train=lines(5., 6.), test=lines(7., 8.))), 1, Discrete(2), 6, 2, lambda goal, u: 0*goal + 3, step,
                 lambda cell: cell, deaths=True, map=Map(lambda obs: obs[..., 0].long(), torch.stack([torch.arange(9.), torch.zeros(9)], 1)))

@pytest.fixture(autouse=True)
def registered(monkeypatch): monkeypatch.setitem(registry.WORLDS, 'cliff', cliff)

def made(way, method):
    name, how = WAYS[way]
    world = presets.make_world(name, **dict(horizon=30) if name == 'cheetah-vel' else {})
    cfg, m = presets.preset(name, method), presets.method_of(world, method)
    mine = dict(chunk=30) if name == 'cheetah-vel' else {}
    idle = ('transitions',) if presets.settings(cfg).get('decoder') == 'multi-head' else ()
    cfg = presets.override(cfg, **{k: v for k, v in (SMALL | mine | how | OWN.get(method, {})).items() if k in presets.settings(cfg) and k not in idle})
    return world, presets.check(cfg, world, m), m

def run(what, seeds, iterations, progress=None, gens=None, step=None):
    world, cfg, m = what
    gens = gens or generators(seeds)
    return train(m, cfg, world, gens, progress or Progress(seeds, m.init(cfg, world, gens)), iterations, 100, step=step), gens

def same(a, b):
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    for k in a: assert torch.equal(a[k], b[k]), k

CONTINUOUS = [k for k in OWN if k not in METHODS]
SLOW = [(w, m) for w in ('cut', 'a2c', 'ppo') for m in METHODS if m not in ('rl2', 'ldm')]

@pytest.mark.parametrize('way,method', [pytest.param(w, m, marks=[pytest.mark.slow]*((w, m) in SLOW)) for w in WAYS for m in METHODS + CONTINUOUS*(w == 'a2c')])
def test_either_learner_on_either_world(way, method, tmp_path):
    "A seed in a stack is the seed alone, a resumed run is the same run, a crew's too, and something is learnt"
    what = made(way, method)
    whole, _ = run(what, [3, 7], 4)
    alone, _ = run(what, [7], 4)
    same(take(whole.state, 1), alone.state)
    half, gens = run(what, [3, 7], 2)
    path, again = save_checkpoint(tmp_path, half, gens, 12 if 'buffer' in half.state else 0), generators([3, 7])
    fresh = what[2].init(what[1], what[0], again)
    same(run(what, [3, 7], 4, load_checkpoint(path, [3, 7], again, fresh.get('buffer')), again)[0].state, whole.state)
    gens = generators([3, 7])
    p = Progress([3, 7], what[2].init(what[1], what[0], gens))
    begun = {k: v.clone() for k, v in flat(p.state['params']).items()}
    with Crew(what[2], what[1], what[0], gens, p, 2) as crew:
        run(what, [3, 7], 4, p, gens, crew.step)
        crew.fetch(p)
    same(p.state, whole.state)
    learnt = [(v != begun[k]).any() for k, v in flat(p.state['params']).items() if k.startswith(('encoder', 'heads', 'policy', 'actor', 'twin', 'model'))]
    assert learnt and all(learnt)

def test_a_duet_with_running_moments():
    "The second process sees the moments of observations, which the first one renews"
    what = made('ppo', 'ldm')
    alone, _ = run(what, [7], 4)
    gens = generators([7])
    p = Progress([7], what[2].init(what[1], what[0], gens))
    with Duet(what[2], what[1], what[0], gens, p) as duet:
        for i in (2, 4):
            run(what, [7], i, p, gens, duet.step)
            duet.fetch(p)
    same(p.state, alone.state)

def test_a_seed_that_diverges_keeps_all_that_an_iteration_replaces():
    "Networks, moments, and where the workers stand: as they were before the spoilt update"
    what = made('cut', 'ldm')
    def update(cfg, world, state, exp, noise, i):
        new, metrics = what[2].update(cfg, world, state, exp, noise, i)
        return new, metrics | ({'value': torch.tensor([metrics['value'][0], float('nan')])} if i == 2 else {})
    p, _ = run((*what[:2], what[2]._replace(update=update)), [3, 7], 5)
    before, _ = run(what, [3, 7], 2)
    assert p.frozen == {7: dict(iteration=2, term='value')}
    for k in ('params', 'opt', 'stats', 'workers'): same(take(p.state[k], 1), take(before.state[k], 1))
    assert not torch.equal(p.state['workers']['past']['after'][0], before.state['workers']['past']['after'][0])

def test_nobody_says_by_name_what_an_iteration_replaces():
    "One function does"
    from pathlib import Path
    import ldm_nb
    for f in Path(ldm_nb.__file__).parent.rglob('*.py'):
        assert "('params', 'opt')" not in f.read_text() and ("('params', 'stats')" not in f.read_text()), f

@pytest.mark.parametrize('options,says', [
    (['--ratio-clip', '.1'], 'old_values is recorded: ratio_clip is 0.1'), (['--chunk', '60'], 'old_values is recorded: tasks outlast'),
    (['--minibatches', '2'], 'set shuffled to true'), (['--chunk', '20'], 'chunk is 20: allowed is 30'),
    (['--method', 'varibad', '--epochs', '2'], 'encoder_loss is joint'), (['--imagined-rewards', 'one-goal'], 'set imagined_task to fixed'),
    (['--chunk', '60', '--old-values', 'recomputed', '--imagined-task', 'fixed'], 'only expected and moving')])
def test_what_does_not_go_together_is_said_at_the_door(options, says, tmp_path, capsys):
    with pytest.raises(SystemExit) as e: main(['train', 'gridworld', *options, '--out', str(tmp_path/'run')])
    assert e.value.code == 2 and says in capsys.readouterr().err and not (tmp_path/'run').exists()


# Few workers, many seeds, tasks that end early

@pytest.mark.parametrize('workers', [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize('method', ['rl2', 'ldm', 'mixreg'])
def test_few_workers_where_tasks_end_early(method, workers):
    "Neighbours whose tasks end elsewhere change no bit of a seed"
    world, cfg, m = made('deaths', method)
    what, seeds = (world, presets.override(cfg, workers=workers), m), list(range(6))
    whole, _ = run(what, seeds, 5)
    for i in seeds: same(take(whole.state, i), run(what, [i], 5)[0].state)

@pytest.mark.parametrize('method', [pytest.param(m, marks=[pytest.mark.slow]*(m in ('mixreg', 'varibad'))) for m in METHODS])
def test_a_run_where_tasks_end_early(method, tmp_path, capsys):
    "By the command line, to its pictures, with the settings that follow from the world; then resumed"
    run = tmp_path/'run'
    def ldm(*argv):
        with pytest.raises(SystemExit) as e: main([str(a) for a in argv])
        assert e.value.code == 0, capsys.readouterr().err
    few = ['--vae-batch', 3, '--buffer-size', 20]*(method in ('ldm', 'varibad')) + ['--rollouts', 4]*(method in ('emaml', 'promp'))
    ldm('train', 'cliff', '--method', method, '--seeds', '0:2', '--workers', 4, '--frames', 400, *few, '--out', run)
    assert (run/'path.png').exists() and (run/'imagined.png').exists() == (method == 'ldm')
    assert json.loads((run/'config.json').read_text())['config'].get('chunk', 12) == 12
    ldm('resume', run, '--frames', 600)
    if method == 'ldm':
        env = imagined(load(run)[1], 3)
        env.reset(seed=0)
        assert env.step([1, 1, 0])[1].shape == (3,)

@pytest.mark.parametrize('name', ['ant-dir-ldm-reduced', 'ant-goal-ldm-reduced', 'cheetah-vel-ldm-reduced', 'gridworld-ldm'])
def test_imagined_tasks_of_kept_networks(name):
    env = imagined(load(f'data/weights/{name}.safetensors')[1], 2)
    obs, info = env.reset(seed=0)
    _, reward, *_ = env.step(env.action_space.sample())
    assert reward.shape == (2,) and obs.shape[0] == 2 and np.isfinite(reward).all()
    assert reward[0] != reward[1] or name == 'gridworld-ldm' and -.1 <= reward[0] <= 1  # a sure decoder says no to both

def test_passes_without_shuffling():
    "Two passes over the whole rollout are two steps"
    world, cfg, m = made('parts', 'rl2')
    for k in (1, 2):
        p, _ = run((world, presets.override(cfg, epochs=k), m), [3], 2)
        assert p.state['opt']['heads']['t'].item() == 2*k

def test_settings_of_a_strangers_method_are_its_own():
    "A rule is for our records, not for a name"
    @dataclasses.dataclass(frozen=True)
    class Mine:
        workers: int = 4
        minibatches: int = 3
        transitions: int = 10**6
        chunk: int = 7
    assert presets.check(Mine(), gridworld()) == Mine()

def test_a_part_of_a_state_that_nobody_would_keep(tmp_path):
    odd = rl2.METHOD._replace(init=lambda *a: rl2.init(*a) | dict(replay=torch.zeros(1)))
    with pytest.raises(BadInput, match="has .'replay'.: its parts are params"):
        jobs.job(tmp_path, dict(seeds=[3], device='cpu'), gridworld(), odd, rl2.RL2(workers=2))
