"Objects that look independent are: environments and worlds in threads, forks and copies, memory, and a renderer that is missing."
import copy, gc, multiprocessing, os, pickle, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from ldm_nb.core.seeds import flat, generators
from ldm_nb.worlds.envs import WORLDS, WorldEnv, WorldVectorEnv, one_episode, register
from ldm_nb.worlds.film import backend
from ldm_nb.worlds.simulator import ANT, CHEETAH, IDLE, Pools, engine, load, simulate, start
from ldm_nb.worlds.robots import ant_direction, ant_goal, cheetah_velocity
from ldm_nb.lab.presets import preset
from ldm_nb.core.errors import Unable
from ldm_nb.worlds.tasks import Split
from ldm_nb.training.trainer import Progress, train
from ldm_nb.lab.presets import METHODS

IDS = register()
ANTS, CHEETAHS = 'ldm_nb/AntDirTrial-v0', 'ldm_nb/CheetahVelTrial-v0'

def at_once(*jobs):
    "Results of functions that run in threads, begun at the same moment"
    with ThreadPoolExecutor(len(jobs)) as pool: return [f.result() for f in [pool.submit(j) for j in jobs]]

def play(env, steps=40, seed=0):
    "All that an environment shows while it is stepped with random actions"
    rng, out = np.random.default_rng(seed), [env.reset(seed=seed)]
    for _ in range(steps):
        out.append(env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)))
        if out[-1][2] is True or out[-1][3] is True: out.append(env.reset())
    return out

def same(a, b): return data_equivalence(a, b, exact=True)


# Threads

@pytest.mark.parametrize('name,n', [(ANTS, (1, 1)), (CHEETAHS, (1, 1)), (ANTS, (3, 3)), (CHEETAHS, (2, 5))], ids=str)
def test_threads(name, n):
    "Two environments in two threads, and stepped in turn, give what each gives alone"
    def make(i): return gym.make_vec(name, num_envs=n[i]) if max(n) > 1 else gym.make(name)
    alone = [play(make(i), seed=i) for i in range(2)]
    both = at_once(*(partial(play, make(i), seed=i) for i in range(2)))
    assert all(same(a, b) for a, b in zip(alone, both))
    envs, rngs = [make(i) for i in range(2)], [np.random.default_rng(i) for i in range(2)]
    for i in range(2): envs[i].reset(seed=i)
    for t in range(10):
        for i in range(2):
            got = envs[i].step(rngs[i].uniform(-1, 1, envs[i].action_space.shape).astype(np.float32))
            assert same(got, alone[i][t + 1])

def test_one_world_in_threads():
    "A single world may be stepped by several threads"
    world, task = ant_goal(), torch.zeros(1, 4, 2)
    def go(seed):
        gen = torch.Generator().manual_seed(seed)
        state, seen = world.start(task, torch.rand(1, 4, 29, generator=gen)), []
        for _ in range(60):
            state, reward, _ = world.step(state, task, torch.randn(1, 4, 8, generator=gen))
            seen.append((state, reward))
        return [torch.stack(x) for x in zip(*seen)]
    alone = [go(i) for i in range(3)]
    for a, b in zip(alone, at_once(*(partial(go, i) for i in range(3)))): assert all(map(torch.equal, a, b))

def trained(seed):
    torch.set_num_threads(1)
    world, cfg, method = cheetah_velocity(horizon=25), preset('cheetah-vel', 'rl2', 'quick'), METHODS['rl2'].method
    cfg = replace(cfg, workers=4)
    gens = generators([seed])
    progress = Progress([seed], method.init(cfg, world, gens))
    train(method, cfg, world, gens, progress, iterations=2, every=2)
    return flat(progress.state['params'])

def test_training_in_threads():
    "Weights of two trainings in two threads, and of each alone"
    alone = [trained(i) for i in range(2)]
    for a, b in zip(alone, at_once(*(partial(trained, i) for i in range(2)))):
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# Warnings of MuJoCo

def test_no_warnings(tmp_path, monkeypatch, capfd):
    "Whatever breaks a simulation, MuJoCo says nothing and writes nothing, and its handler is never touched"
    mujoco = engine()
    load(ANT, False), load(CHEETAH, False)   # as a pool loads them: the cache tells these calls from load(ANT)
    monkeypatch.chdir(tmp_path)
    def touched(*a): raise AssertionError('the handler is shared by the process')
    monkeypatch.setattr(mujoco, 'set_mju_user_warning', touched)
    rng = np.random.default_rng(0)
    for body in (ANT, CHEETAH):
        n, width = 200, body.nq + 2*body.nv
        state = start(body, False, torch.zeros(1, n, 1), torch.rand(1, n, body.nq + body.nv))
        action = torch.randn(1, n, body.motors).double()
        for i in range(n//2):
            bad, j = [np.nan, np.inf, 1e300, 1e11, -1e11, 1e7, 2e5][i % 7], rng.integers(width + body.motors)
            if j < width: state[0, i, j] = bad
            else: action[0, i, j - width] = bad
        after, failed = simulate(body, state, action)
        assert failed[0, :n//2].sum() > 40 and not failed[0, n//2:].any() and after[0, n//2:].isfinite().all()
        assert torch.equal(after[failed].nan_to_num(), state[failed].nan_to_num())
    out = capfd.readouterr()
    assert not out.out and not out.err and not list(tmp_path.iterdir())


# Memory

LEAK = '''
import ctypes, os, torch, gymnasium as gym, ldm_nb.worlds.envs
def memory():
    if hasattr(ctypes.CDLL(None), "malloc_trim"): ctypes.CDLL(None).malloc_trim(0)
    return int(open("/proc/self/statm").read().split()[1])*os.sysconf("SC_PAGE_SIZE")/1e6
def go(n):
    envs = gym.make_vec("ldm_nb/CheetahVel-v0", num_envs=n)
    envs.reset(seed=0)
    envs.step(envs.action_space.sample())
    envs.close()
    return envs.unwrapped.batch.world
kept = [go(n) for n in (1, 300)]
before = memory()
kept = [go(n) for n in range(240, 300)]
print(memory() - before)
'''

@pytest.mark.skipif(not os.path.exists('/proc/self/statm'), reason='needs /proc')
def test_closing_frees():
    "Sixty numbers of environments, each closed; their worlds are kept"
    out = subprocess.run([sys.executable, '-c', LEAK], capture_output=True, text=True, check=True).stdout
    assert float(out) < 10

def test_pools_are_few():
    "A world that is stepped with many numbers of workers keeps a few pools; closed, none, and goes on"
    world, task = cheetah_velocity(), torch.zeros(1, 12, 1)
    pools = world.simulator.close.__self__
    def go(n): return world.step(world.start(task[:, :n]), task[:, :n], torch.ones(1, n, 6))[0]
    want = [go(n) for n in range(1, 12)]
    assert len(pools.idle) == IDLE
    world.simulator.close()
    assert not pools.idle and torch.equal(go(11), want[-1]) and len(pools.idle) == 1


# Forks

def forked(f):
    "What `f` returns in a forked process; it must end"
    context = multiprocessing.get_context('fork')
    here, there = context.Pipe()
    p = context.Process(target=lambda: there.send(f()))
    p.start()
    assert here.poll(60)
    got = here.recv()
    p.join(20)
    assert p.exitcode == 0
    return got

def test_fork():
    "An environment goes on in a forked process as in this one, and this one is undisturbed"
    env = gym.make(CHEETAHS)
    play(env, 5)
    want = play(copy.deepcopy(env), 5, seed=3)
    def child():
        got = play(env, 5, seed=3)
        env.close(); gc.collect()
        return got
    assert same(forked(child), want) and same(play(env, 5, seed=3), want)


# Pickle and copy

COPIES = dict(pickle=lambda x: pickle.loads(pickle.dumps(x)), deepcopy=copy.deepcopy)

@pytest.mark.parametrize('how', COPIES)
@pytest.mark.parametrize('name', IDS)
def test_copies(name, how):
    "A copy made in the middle of an episode goes on with the same observations, rewards and draws; the original is undisturbed"
    for env in (gym.make(name, split='test', max_episode_steps=9), gym.make_vec(name, num_envs=2, split='test', max_episode_steps=9),
                gym.make_vec(name, num_envs=2, max_episode_steps=9, autoreset_mode=AutoresetMode.SAME_STEP)):
        env.action_space.seed(0)
        env.reset(seed=1)
        for _ in range(4): env.step(env.action_space.sample())
        twin = COPIES[how](env)
        assert twin.unwrapped.batch is not env.unwrapped.batch and twin.spec == env.spec
        actions = [env.action_space.sample() for _ in range(9)]
        def go(e):
            out = []
            for a in actions:
                out.append(e.step(a))
                if out[-1][3] is True: out.append(e.reset())
            return out
        a, b = go(env), go(twin)
        assert same(a, b) and same(go(env)[:1], go(twin)[:1]) if isinstance(env, gym.Env) else same(a, b)

@pytest.mark.parametrize('world', [*(make() for make in WORLDS.values()), ant_goal(contact_forces=True), one_episode(cheetah_velocity(horizon=7))],
                         ids=[*WORLDS, 'contacts', 'once'])
def test_worlds(world):
    "A world is made again in the process that loads it"
    again = COPIES['pickle'](world)
    assert (again.obs_dim, again.steps, again.codec.code_bytes, again.family.name) == (world.obs_dim, world.steps, world.codec.code_bytes, world.family.name)
    for k, s in world.family.splits.items():
        t = again.family.splits[k]
        u = torch.rand(50, s.noise)
        assert torch.equal(s.tasks, t.tasks) and torch.equal(s.sample(u), t.sample(u)) and t.contains(s.tasks).all()
    assert len(pickle.dumps(world)) < 10_000

def test_changed_by_hand():
    "What was changed is not silently made as it was before"
    world = cheetah_velocity()
    split = Split(torch.zeros(1, 1), lambda u: u, lambda x: x[..., 0] == 0)
    for x in (replace(world, horizon=3), one_episode(replace(world, horizon=3)), WorldEnv(replace(world, horizon=3)), split):
        with pytest.raises(TypeError, match='put together by hand'): pickle.dumps(x)

@pytest.mark.parametrize('context', ['fork', 'spawn'])
def test_async(context):
    "gymnasium's environments in processes of their own, from worlds that were used before"
    world = ant_direction()
    play(WorldEnv(world), 3)
    make = partial(WorldEnv, world, trial=False)
    envs = AsyncVectorEnv([make]*2, context=context)
    alone = [make(), make()]
    try:
        obs, _ = envs.reset(seed=5)
        want = [e.reset(seed=5 + i)[0] for i, e in enumerate(alone)]
        for _ in range(3):
            assert np.array_equal(obs, want)
            actions = envs.action_space.sample()
            obs, reward, *_ = envs.step(actions)
            out = [e.step(a) for e, a in zip(alone, actions)]
            want = [o[0] for o in out]
            assert np.array_equal(reward.astype(np.float32), np.float32([o[1] for o in out]))
    finally: envs.close()


# A renderer that is missing

TRAIN = '''
import os, torch
torch.set_num_threads(1)
from dataclasses import replace
from ldm_nb.core.seeds import generators
from ldm_nb.worlds.robots import cheetah_velocity
from ldm_nb.lab.presets import METHODS, preset
from ldm_nb.core.errors import Unable
from ldm_nb.training.trainer import Progress, train
from ldm_nb.worlds.envs import WorldEnv
before = dict(os.environ)
world, cfg, method = cheetah_velocity(horizon=25), replace(preset('cheetah-vel', 'rl2', 'quick'), workers=4), METHODS['rl2'].method
gens = generators([0])
train(method, cfg, world, gens, Progress([0], method.init(cfg, world, gens)), iterations=1, every=1)
assert dict(os.environ) == before, "the environment was changed"
print(world.simulator.bare(4, 1, 2) > 0)
env = WorldEnv('CheetahVel', render_mode='rgb_array')
env.reset(seed=0)
try: print(env.render().shape)
except Unable as e: print(e)
'''

@pytest.mark.parametrize('gl,message', [('osmesa', 'MUJOCO_GL=osmesa does not work here: unset it'), ('nonsense', 'MUJOCO_GL=nonsense draws nothing: unset it'),
                                        ('off', 'MUJOCO_GL=off draws nothing: unset it')])
def test_without_renderer(gl, message):
    "Training and the bench draw nothing and need none; a picture says what it lacks"
    env = {k: v for k, v in os.environ.items() if k != 'PYOPENGL_PLATFORM'} | dict(MUJOCO_GL=gl)
    r = subprocess.run([sys.executable, '-c', TRAIN], env=env, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    trained, pictured = r.stdout.splitlines()
    assert trained == 'True' and (pictured.startswith(message) or gl == 'osmesa' and pictured == '(360, 480, 3)')

def test_renderer_after_all():
    "Unset in the same process, the variable is no obstacle any more"
    try: backend()
    except Unable as e: pytest.skip(str(e))
    code = ('import os\nos.environ["MUJOCO_GL"] = "osmesa"\nfrom ldm_nb.worlds.simulator import engine\nengine()\ndel os.environ["MUJOCO_GL"]\n'
            'from ldm_nb.worlds.envs import WorldEnv\nenv = WorldEnv("AntDir", render_mode="rgb_array")\nenv.reset(seed=0)\nprint(env.render().shape)')
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert r.stdout == '(360, 480, 3)\n', r.stderr
