"""The robots' methods: a stack of seeds is its seeds, a resumed run is the same run, physics that fails is counted."""
import dataclasses

import pytest
import torch

from ldm_nb.core.errors import Unable
from ldm_nb.lab import presets
from ldm_nb.lab.cli import main
from ldm_nb.core.seeds import flat, generators, take
from ldm_nb.core.files import read_jsonl
from ldm_nb.belief.elbo import elbo, vae_noise
from ldm_nb.belief.encoder import encode
from ldm_nb.evaluation.evaluate import evaluate, outcome, summary
from ldm_nb.worlds.robots import ant_direction, ant_goal, cheetah_velocity
from ldm_nb.worlds.simulator import load
from ldm_nb.lab.presets import METHODS, ROBOT_WORLDS, method_of, override, preset, settings
from ldm_nb.lab.checkpoints import load_checkpoint, save_checkpoint
from ldm_nb.training.trainer import Diverged, Progress, train

SMALL = dict(rollouts=4, posteriors=6, transitions=5, vae_batch=3, buffer_size=20, workers=6, chunk=30, vae_updates=1, minibatches=2, mixture_workers=2)
OWN = dict(pearl=dict(chunk=90, workers=2, prior_steps=30, initial_steps=30, replay_size=600, updates=2, meta_batch=2, context_batch=5, task_batch=6,
                      hidden=(8, 8), context_layers=(8,)),
           mql=dict(chunk=30, workers=2, initial_steps=30, replay_size=300, updates=2, rl_batch=8, history=4, context_units=8, hidden=(8,), new_updates=2, old_updates=2,
                    old_batch=8, snapshot=30, explore_episodes=1),
           mier=dict(chunk=90, workers=2, prior_steps=30, initial_steps=30, replay_size=600, first_size=200, updates=2, meta_batch=2, task_batch=6, hidden=(8, 8),
                     model_layers=(8,), explore_episodes=1, model_updates=2, rl_updates=2, adapt_batch=8, real_steps=2))  # method -> settings of its own


def made(world, method, name='paper', **changes):
    "A world of short episodes, where a task takes two iterations, and a method that fits it"
    cfg = preset(world, method, name)
    return ROBOT_WORLDS[world](horizon=30), override(cfg, **{k: v for k, v in (SMALL | OWN.get(method, {}) | changes).items() if k in settings(cfg)}), method_of(world, method)

def run(what, seeds, iterations, progress=None, gens=None, **kw):
    world, cfg, m = what
    gens = gens or generators(seeds)
    return train(m, cfg, world, gens, progress or Progress(seeds, m.init(cfg, world, gens)), iterations, 100, **kw), gens

def same(a, b):
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    for k in a: assert torch.equal(a[k], b[k]), k


LEARNERS = [k for k, e in METHODS.items() if not e.oracle]

@pytest.mark.parametrize('world,name', [*((w, 'paper') for w in ROBOT_WORLDS), ('ant-dir', 'release')])
@pytest.mark.parametrize('method', LEARNERS)
def test_seed_in_a_stack_is_the_seed_alone(world, method, name):
    what, seen = made(world, method, name), {}
    alone, _ = run(what, [7], 4, tick=lambda p, m: seen.setdefault(p.iteration, m))
    def tick(p, m):
        for k, v in m.items(): assert torch.equal(v[1:2], seen[p.iteration][k]), (p.iteration, k)
    stacked, _ = run(what, [3, 7, 11], 4, tick=tick)
    same(take(stacked.state, 1), alone.state)

@pytest.mark.parametrize('world', ROBOT_WORLDS)
@pytest.mark.parametrize('method', [m for m in LEARNERS if 'chunk' in settings(preset('ant-dir', m))])
def test_resumed_in_the_middle_of_a_task_is_the_same_run(world, method, tmp_path):
    what = made(world, method)
    whole, _ = run(what, [3, 7], 5)
    half, gens = run(what, [3, 7], 3)
    if workers := half.state['workers']: assert (workers['past']['length'] > 0).any()
    tasks = 20 if hasattr(what[1], 'vae') else None
    path, again = save_checkpoint(tmp_path, half, gens, tasks), generators([3, 7])
    fresh = what[2].init(what[1], what[0], again)
    p, _ = run(what, [3, 7], 5, load_checkpoint(path, [3, 7], again, fresh.get('buffer')), again)
    same(p.state, whole.state)
    same(p.sums, whole.sums)

def test_ldm_without_mixture_is_rl2():
    a, _ = run(made('cheetah-vel', 'ldm', mixture_workers=0), [5], 3)
    b, _ = run(made('cheetah-vel', 'rl2'), [5], 3)
    same({k: a.state['params'][k] for k in ('encoder', 'heads')}, b.state['params'])
    same({k: a.state['stats'][k] for k in ('seen', 'reward')}, b.state['stats'])

def test_mixture_tasks_never_reach_the_buffer():
    "What is stored are the normal workers' tasks, with true rewards"
    world, cfg, m = made('ant-dir', 'ldm')
    seen, gens = [], generators([0])
    def collect(*a):
        seen.append(m.collect(*a))
        return seen[-1]
    p = Progress([0], m.init(cfg, world, gens))
    train(m._replace(collect=collect), cfg, world, gens, p, 6, 100)
    true = torch.cat([x.traj.true_reward for x in seen], 1)[0, :, :cfg.normal].flatten()
    stored = int(p.state['stats']['tasks'][0, 0])
    assert 0 < stored <= 20
    *_, reward, valid = world.codec.unpack(p.state['buffer'][:, :stored])
    assert torch.isin(reward[valid], true).all()
    assert sum(int(x.traj.done[..., :cfg.normal].sum()) for x in seen) == stored

def test_evaluation_changes_nothing_and_counts_only_the_task():
    what = made('ant-dir', 'rl2')
    world, cfg, m = what
    p, gens = run(what, [3, 7], 2)
    before = {k: v.clone() for k, v in flat(p.state).items()}
    out = outcome(world, evaluate(world, m.agent(cfg, p.state, True), gens['eval']))
    for k, v in flat(p.state).items(): assert torch.equal(v, before[k])
    assert set(summary(world, out)[0]) == {'train', 'first_train', 'test', 'first_test'}
    assert out['returns'].shape == (2, 8, 2)

@pytest.mark.parametrize('often,iterations,frozen', [(6, 2, 0), (1, 2, None), (1, 8, 4)])
def test_failing_physics_is_counted_and_freezes_a_seed_that_cannot_go_on(often, iterations, frozen):
    "The simulator gives up on some of one seed's workers at every seventh step, at once or for long"
    world, cfg, m = made('cheetah-vel', 'rl2')
    steps = iter(range(10**6))
    def step(state, task, action):
        after, reward, failed = world.step(state, task, action)
        if next(steps) % 7 == 6: failed = failed | (torch.arange(6) < often)*torch.tensor([[False], [True]])
        return after, reward, failed
    gens, seen = generators([3, 7]), []
    p = Progress([3, 7], m.init(cfg, world, gens))
    train(m, cfg, dataclasses.replace(world, step=step), gens, p, iterations, 100, tick=lambda p, metrics: seen.append(metrics['simulator_failures']))
    assert p.frozen == ({} if frozen is None else {7: dict(iteration=frozen, term='simulator_failures')})
    assert all(x[0] == 0 for x in seen) and seen[frozen or 0][1] > 0
    assert [k for k, x in enumerate(seen) if x[1] == torch.inf] == ([] if frozen is None else list(range(frozen, iterations)))

def test_without_mujoco_the_message_says_what_to_install(monkeypatch, capsys, tmp_path):
    def missing(body): raise Unable("the worlds ant-dir, ant-goal and cheetah-vel need MuJoCo: pip install --upgrade 'mujoco>=4'")
    monkeypatch.setattr(presets, 'load', missing)
    with pytest.raises(SystemExit) as e: main(['train', 'ant-dir', '--out', str(tmp_path/'run')])
    err = capsys.readouterr().err
    assert e.value.code == 1 and 'mujoco>=4' in err and 'Traceback' not in err and not (tmp_path/'run').exists()

def test_a_run_from_the_command_line(capsys, tmp_path):
    "Trained, stopped half-way through a task, resumed to another budget, measured and drawn"
    run = tmp_path/'run'
    def ldm(*argv):
        with pytest.raises(SystemExit) as e: main([str(a) for a in argv])
        assert e.value.code == 0
        return capsys.readouterr().out
    out = ldm('train', 'cheetah-vel', '--method', 'varibad', '--preset', 'quick', '--workers', 4, '--buffer-size', 10, '--seeds', '0:2', '--frames', 800, '--out', run)
    assert '| varibad | test | 5 |' in out and 'motion.png' in out and 'goals' not in out
    assert 'episode 2' in ldm('resume', run, '--frames', 2400)
    assert ldm('evaluate', run).count('| 2.25 ') == 1
    lines = read_jsonl(run/'metrics.jsonl')
    assert [l['frames'] for l in lines] == [0, 0, 800, 800, 2400, 2400] and lines[-1]['metrics']['simulator_failures'] == 0
    assert 'nothing is damaged' in ldm('check', run)


@pytest.mark.parametrize('options,message', [
    (('mixreg', '--chunk', '100'), 'chunk is 100: allowed is 200'), (('mixreg',), 'nowhere.xml is missing'),
    (('varibad', '--encoder-lr', '1e-4'), 'encoder_lr is 0.0001: set vae_lr')])
def test_refused_at_the_door(options, message, tmp_path, capsys, monkeypatch):
    "A model that cannot be loaded (status 1), and a setting that does nothing here (status 2): a line, and no folder"
    if len(options) == 1:
        monkeypatch.setattr(presets, 'load', lambda body: load(dataclasses.replace(body, file='nowhere.xml')))
    with pytest.raises(SystemExit) as e: main(['train', 'cheetah-vel', '--method', *options, '--out', str(tmp_path/'run')])
    assert e.value.code == (1 if len(options) == 1 else 2) and message in capsys.readouterr().err and not (tmp_path/'run').exists()


def judged(few, world, params, noise, o, x, y, valid):
    post = encode(params['encoder'], o[:, 1:], x, y)
    return elbo(params, few, world, post, o[:, 1:], y, noise, x, o[:, :-1], valid)

def test_what_follows_the_end_of_a_task_is_no_data():
    "Nonsense after the end of a task changes no term of the ELBO"
    world, cfg, m = made('cheetah-vel', 'varibad')
    gens, T = generators([0, 1]), world.steps
    params, g = m.init(cfg, world, gens)['params'], torch.Generator().manual_seed(0)
    o, x, y = (torch.randn(2, n, 10, *d, generator=g) for n, d in ((T + 1, (21,)), (T, (6,)), (T, ())))
    valid, few = (torch.arange(T) < 20).float()[None, :, None].expand_as(y), dataclasses.replace(cfg.vae, posteriors=9, transitions=11)
    noise = vae_noise(gens['vae'], few, cfg.encoder, world, 10)
    def terms(k): return judged(few, world, params, noise, *(torch.cat([v[:, :n], k*v[:, n:]], 1) for v, n in ((o, 21), (x, 20), (y, 20))), valid)
    for a, b in zip(terms(1).values(), terms(7).values()): assert torch.equal(a, b)

def test_chosen_pairs_stand_for_all_that_count():
    "The mean over choices is the sum over all pairs, where tasks have different lengths"
    world, cfg, m = made('cheetah-vel', 'varibad')
    gens, T = generators([0, 1]), world.steps
    params, g = m.init(cfg, world, gens)['params'], torch.Generator().manual_seed(0)
    o, x, y = (torch.randn(2, n, 10, *d, generator=g) for n, d in ((T + 1, (21,)), (T, (6,)), (T, ())))
    valid = (torch.arange(T)[:, None] < torch.linspace(T//4, T, 10)).float()[None].expand_as(y)
    few = dataclasses.replace(cfg.vae, posteriors=8, transitions=12)
    def once():
        n = vae_noise(gens['vae'], few, cfg.encoder, world, 10)
        return judged(few, world, params, n | dict(eps=0*n['eps']), o, x, y, valid)['reconstruction']
    got, every = torch.stack([once() for _ in range(80)]), dataclasses.replace(few, posteriors=0, transitions=0)
    noise = vae_noise(gens['vae'], every, cfg.encoder, world, 10)
    want = judged(every, world, params, noise | dict(eps=0*noise['eps']), o, x, y, valid)['reconstruction']
    assert ((got.mean(0) - want).abs() < 4*got.std(0)/80**.5).all()
