"""What a process has set for itself (torch's defaults, its threads) changes no bit, and stays as it was; agents go from process to process."""
import copy, os, pickle, subprocess, sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
import torch

from ldm_nb.lab.cli import main
from ldm_nb.lab.graphs import Recorded, no_graph
from ldm_nb.core.seeds import flat, generators, take
from ldm_nb.lab.crew import Crew
from ldm_nb.lab.duet import Duet
from ldm_nb.evaluation.evaluate import evaluate
from ldm_nb.worlds.gridworld import gridworld
from ldm_nb.evaluation.motion import resets, watch
from ldm_nb.policy.policy import Agent
from ldm_nb.lab.presets import METHODS, ROBOT_WORLDS, WORLDS, load_agent, method_of, override, preset, refusal, settings
from ldm_nb.lab.checkpoints import unseal
from ldm_nb.training.trainer import Progress, train

SMALL = dict(rollouts=4, posteriors=4, transitions=3, vae_batch=2, buffer_size=8, precollect=0, workers=4, mixture_workers=1, chunk=30,
             vae_updates=1, minibatches=2)
WORLD = gridworld()
DEFAULTS = dict(double=lambda: torch.set_default_dtype(torch.float64), nowhere=lambda: torch.set_default_device('meta'),
                ungraded=lambda: torch.set_grad_enabled(False))

@contextmanager
def default(name):
    "Within it torch has another default; a tensor that does not say where it is to be is nowhere"
    DEFAULTS[name]()
    try: yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.set_grad_enabled(True)

def made(world, method, **changes):
    "A small run: world, settings, method"
    cfg, how = preset(world, method), dict(horizon=30) if world in ROBOT_WORLDS else {}
    small = SMALL if how else {k: v for k, v in SMALL.items() if k not in ('chunk', 'minibatches')}
    cfg = override(cfg, **{k: v for k, v in (small | changes).items() if k in settings(cfg)})
    return ROBOT_WORLDS[world](**how) if how else WORLD, cfg, method_of(world, method)

def trained(what, seeds=(3, 7), iterations=2, within=lambda *parts: nullcontext()):
    "A small run of two seeds: its state and its metrics, and how it plays"
    (world, cfg, m), gens, seen = what, generators(seeds), []
    p = Progress(list(seeds), m.init(cfg, world, gens))
    with within(m, cfg, world, gens, p) as crew:
        train(m, cfg, world, gens, p, iterations, 100, tick=lambda p, metrics: seen.append(metrics), step=crew and crew.step)
        if crew: crew.fetch(p)
    played = evaluate(world, m.agent(cfg, p.state, True), gens['eval'], 'test')
    return dict(state=p.state, metrics=dict(enumerate(seen)), played=played._asdict(), sums=p.sums)

def same(a, b):
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    for k in a: assert a[k].dtype == b[k].dtype and a[k].device == b[k].device and torch.equal(a[k], b[k]), k

FIXED = dict(imagined_task='fixed', transitions=0, mixed='means')
PEARL = dict(chunk=90, prior_steps=30, initial_steps=30, replay_size=600, updates=2, meta_batch=2, context_batch=5, task_batch=6, hidden=(8, 8),
             context_layers=(8,), train_tasks=5)
MQL = dict(chunk=30, initial_steps=30, replay_size=300, updates=2, rl_batch=8, history=4, context_units=8, hidden=(8,), new_updates=2, old_updates=2, old_batch=8,
           snapshot=30, explore_episodes=1, train_tasks=5)
MIER = dict(chunk=90, prior_steps=30, initial_steps=30, replay_size=600, first_size=200, updates=2, meta_batch=2, task_batch=6, hidden=(8, 8), model_layers=(8,),
            explore_episodes=1, model_updates=2, rl_updates=2, adapt_batch=8, real_steps=2, train_tasks=5)
CASES = [*(('gridworld', m, {}) for m, e in METHODS.items() if not e.oracle and not refusal('gridworld', m)),
         ('gridworld', 'ldm', FIXED | dict(imagined_rewards='one-goal', counted='places')), ('gridworld', 'ldm', dict(imagined_rewards='drawn')),
         ('cheetah-vel', 'ldm', {}), ('ant-goal', 'varibad', {}), ('ant-dir', 'mixreg', dict(average=.5)), ('cheetah-vel', 'pearl', PEARL), ('cheetah-vel', 'mql', MQL), ('cheetah-vel', 'mier', MIER)]

@cache
def usual(i): return trained(made(*CASES[i][:2], **CASES[i][2]))

@pytest.mark.parametrize('name', DEFAULTS)
@pytest.mark.parametrize('i', range(len(CASES)), ids=lambda i: '-'.join(CASES[i][:2]))
def test_torch_defaults_change_no_bit(i, name):
    want = usual(i)
    with default(name): got = trained(made(*CASES[i][:2], **CASES[i][2]))
    same(got, want)

HELPERS = dict(crew=(lambda *parts: Crew(*parts, 2), (3, 7)), duet=(Duet, (3,)),
               recorded=(lambda *parts: nullcontext(Alone(*parts[:-1], no_graph, 1)), (3, 7)))

class Alone(Recorded):
    "Recorded iterations, without a GPU"
    def fetch(self, progress): pass

@pytest.mark.parametrize('name', DEFAULTS)
@pytest.mark.parametrize('helper', HELPERS)
def test_torch_defaults_change_no_bit_of_helpers(helper, name):
    within, seeds = HELPERS[helper]
    want = trained(made('gridworld', 'ldm'), seeds)
    with default(name): got = trained(made('gridworld', 'ldm'), seeds, within=within)
    same(got, want)

def elsewhere(code, path, **env):
    "Run some code, which writes to `path`, in another process"
    env = dict(os.environ, **env, PYTHONPATH=os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]))
    done = subprocess.run([sys.executable, '-c', code, str(path)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]

def ldm(*argv):
    with pytest.raises(SystemExit) as e: main(list(map(str, argv)))
    assert e.value.code == 0

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "world, name of a default -> the folder of a small run of two seeds under it, a robot's resumed once"
    runs, patch = {}, pytest.MonkeyPatch()
    def run(world, name=''):
        if (world, name) in runs: return runs[world, name]
        runs[world, name] = folder = tmp_path_factory.mktemp('run')/'run'
        few = ['--vae-batch', '4', '--vae-updates', '1', '--workers', '4', '--mixture-workers', '1', '--posteriors', '4', '--transitions', '4']
        few, frames = few + ['--minibatches', '2', '--chunk', '30', '--buffer-size', '9']*(world in ROBOT_WORLDS), 120 if world in ROBOT_WORLDS else 480
        with default(name) if name else nullcontext():
            ldm('train', world, '--seeds', '3,7', '--frames', frames, '--threads', '1', '--out', folder, *few)
            if world in ROBOT_WORLDS: ldm('resume', folder, '--frames', 2*frames, '--threads', '1')
        return folder
    patch.setitem(WORLDS, 'cheetah-vel', partial(WORLDS['cheetah-vel'], horizon=30))
    yield run
    patch.undo()

@pytest.mark.parametrize('name', ['double', 'nowhere'])
@pytest.mark.parametrize('world', ['gridworld', 'cheetah-vel'])
def test_a_run_of_the_command_line(whole, world, name, capsys):
    "Weights, evaluations and table; pictures are drawn too"
    got, want = whole(world, name), whole(world)
    same(unseal(got/'weights.safetensors')[0], unseal(want/'weights.safetensors')[0])
    for file in ('metrics.jsonl', 'table.md'): assert (got/file).read_text() == (want/file).read_text()
    def play():
        world, agent = load_agent(want, 7)
        return evaluate(world, agent, generators([7])['eval'], 'test')._asdict()
    with default(name): got = play()
    same(got, play())

def test_a_film_shows_what_was_measured():
    world, cfg, m = made('cheetah-vel', 'rl2')
    task = world.family.splits['test'].tasks[None, :2]
    def look():
        who = m.agent(cfg, m.init(cfg, world, generators([3])), True)
        return watch(world, who, task, resets(world, [3], 2))._asdict()
    want = look()
    for name in DEFAULTS:
        with default(name): same(look(), want)

def seen_early():
    "Everything that is made when a page is imported, and three steps in environments"
    import gymnasium, ldm_nb.worlds.envs # makes the ids
    from ldm_nb.worlds import gridworld, robots as locomotion
    from ldm_nb.lab import presets
    from ldm_nb.methods import rl2
    worlds = *(w() for w in presets.WORLDS.values()), rl2.number_world()
    out = {f'{w.family.name}.{k}': s.tasks for w in worlds for k, s in w.family.splits.items()}
    out |= dict(places=gridworld.PLACES, moves=gridworld.MOVES)
    for name in ('GridworldTrial', 'AntGoalTrial'):
        env = gymnasium.make_vec(f'ldm_nb/{name}-v0', num_envs=2)
        obs, info = env.reset(seed=3, options=dict(task=[0, 2]) if name == 'GridworldTrial' else None)
        for _ in range(3): obs, reward, *_ = env.step(env.action_space.sample()*0)
        out |= {f'{name}.{k}': torch.from_numpy(x) for k, x in dict(obs=obs, reward=reward, task=info['task']).items()}
        env.close()
    return out

EARLY = """import sys, torch
torch.set_default_dtype(torch.float64); torch.set_default_device('meta')
from tests.test_defaults import seen_early
torch.save(seen_early(), sys.argv[1])"""

def test_defaults_set_before_the_first_import(tmp_path):
    elsewhere(EARLY, tmp_path/'seen')
    same(torch.load(tmp_path/'seen'), seen_early())

def test_tables_and_pictures_of_a_notebook():
    "The yardstick, intervals, a map"
    def look():
        from ldm_nb.evaluation.bayes import hunt, optimum
        from ldm_nb.evaluation.compare import moving_average, student, welch
        from ldm_nb.evaluation.evaluate import confidence_interval, iqm
        from ldm_nb.worlds.robots import at_rest, cheetah_velocity
        x = WORLD.family.splits['eval'].tasks.sum(1)
        return optimum(hunt([[0, 2], [2, 0]])), confidence_interval(x), iqm(x).item(), student(3.), welch(x, x), moving_average(x).tolist(), \
            at_rest(cheetah_velocity(horizon=3)).tolist()
    want = look()
    for name in DEFAULTS:
        with default(name): assert look() == want, name


# Threads

def threaded(n):
    "What a library user on `n` cores gets"
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        world, cfg, m = what = made('gridworld', 'ldm', workers=16, vae_batch=8, posteriors=0, transitions=0)
        got = trained(what, (3,), 3)
        state = m.init(cfg, world, generators([5]))
        got |= dict(first=state, more=m.agent(cfg, got['state']).act(torch.ones(1, 9, 128), torch.ones(1, 9, 3), torch.zeros(1, 9))[1])
        assert torch.get_num_threads() == n
        return got
    finally: torch.set_num_threads(before)

def test_the_number_of_threads_changes_no_bit(tmp_path):
    "Networks, training and evaluation by the library; torch keeps its threads"
    elsewhere("""import sys, torch
from tests.test_defaults import threaded
torch.save(threaded(4), sys.argv[1])""", tmp_path/'four', OMP_NUM_THREADS='4')
    same(torch.load(tmp_path/'four'), threaded(1))


# Agents

def acts(agent, world):
    "Actions, values and memory in three steps"
    obs = torch.linspace(0, 1, 4*(world.obs_dim + 1)).reshape(1, 4, -1)
    h, out = agent.start(4), []
    for k in range(3):
        u = torch.full((1, 4, world.action_dim) if world.action_dim > 1 else (1, 4), .3*k)
        action, value = agent.act(h, obs + k, u)
        h = agent.observe(h, obs - k, action, value)
        out += [action, value, {k: v for k, v in h.items() if v is not None} if isinstance(h, dict) else h]
    return {str(i): x for i, x in enumerate(out)}

def agents():
    "Of every method and world, untrained, each as sampled and greedy"
    for world in ('gridworld', 'ant-dir'):
        for method in [m for m in METHODS if not refusal(world, m)]:
            for change in (dict(), dict(average=.9, state_conditioned=True)):
                w, cfg, m = made(world, method, **change)
                state = m.init(cfg, w, generators([3, 7]))
                for greedy in (False, True): yield w, m.agent(cfg, take(dict(params=state['params'], stats=state['stats']), 1), greedy)

def test_agents_in_another_process(tmp_path, whole):
    some = [*agents(), *(load_agent(whole(w), s) for w in ('gridworld', 'cheetah-vel') for s in (3, 7))]
    (tmp_path/'agents').write_bytes(pickle.dumps([a for _, a in some]))
    (tmp_path/'worlds').write_bytes(pickle.dumps([(w.obs_dim, w.action_dim) for w, _ in some]))
    elsewhere("""import pickle, sys, torch
from pathlib import Path
from types import SimpleNamespace
from tests.test_defaults import acts
read = lambda name: pickle.loads((Path(sys.argv[1]).parent/name).read_bytes())
worlds = (SimpleNamespace(obs_dim=o, action_dim=a) for o, a in read('worlds'))
torch.save({str(i): acts(a, w) for i, (a, w) in enumerate(zip(read('agents'), worlds))}, sys.argv[1])""", tmp_path/'acts', OMP_NUM_THREADS='3')
    same(torch.load(tmp_path/'acts'), {str(i): acts(a, w) for i, (w, a) in enumerate(some)})

def test_an_agent_is_pickled_with_nothing_else():
    "No buffers, moments, other networks or other seeds; a changed one, or one put together by hand, refuses"
    world, cfg, m = made('gridworld', 'ldm', buffer_size=100_000)
    state = m.init(cfg, world, generators(range(8)))
    agent = m.agent(cfg, take(state, 5), True)
    acting = flat(take({k: state['params'][k] for k in ('encoder', 'heads')}, 5)).values()
    assert len(pickle.dumps(agent)) < 1.2*sum(x.numel()*4 for x in acting) + 10_000
    same(acts(pickle.loads(pickle.dumps(agent)), world), acts(agent, world))
    for twin in (copy.copy(agent), copy.deepcopy(agent), copy.deepcopy([agent])[0]): same(acts(twin, world), acts(agent, world))
    with pytest.raises(TypeError, match='this Agent was put together by hand'): pickle.dumps(Agent(agent.start, agent.act, agent.observe))
    with pytest.raises(TypeError, match='by hand'): pickle.dumps(replace(agent, act=lambda *_: None))
