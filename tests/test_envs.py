"The worlds as gymnasium sees them: its own checkers, one environment against a batch, seeds, bad input."
import copy, multiprocessing, pickle, subprocess, sys, threading, warnings
from dataclasses import replace

import numpy as np
import gymnasium as gym
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics, TimeAwareObservation
from gymnasium.wrappers.vector import RecordEpisodeStatistics as VectorStatistics

from ldm_nb.worlds.envs import WORLDS, Batch, WorldEnv, WorldVectorEnv, register
from ldm_nb.worlds.film import backend
from ldm_nb.worlds.tasks import Box, World
from ldm_nb.worlds.gridworld import GRIDWORLD, ceiling, gridworld
from ldm_nb.core.errors import BadInput, Unable

IDS = register()
GRID, BODIES = [k for k in IDS if 'Gridworld' in k], [k for k in IDS if 'Gridworld' not in k]
ONE, TRIAL = 'ldm_nb/Gridworld-v0', 'ldm_nb/GridworldTrial-v0'
RINGS = {name: s.tasks.numpy() for name, s in GRIDWORLD.splits.items()}


@pytest.fixture(autouse=True)
def strict():
    "A warning is an error"
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        yield


def walker():
    "A world with all that the gridworld lacks: continuous actions, noisy starts, death (beyond 1), no cells"
    def step(x, task, action):
        x = x + .4*action
        return x, (x - task).abs().sum(-1), (x > 1).any(-1)
    return World(gridworld().family, 2, Box(2), horizon=6, episodes=3, start=lambda task, u: .2*u, step=step, observe=lambda x: x, reset_noise=2,
                 deaths=True)

def opengl():
    try: return backend()
    except Unable: return None

def to_goal(obs, goals, flag):
    "Actions that walk right, then up, then stay"
    x, y = np.where(flag, 0, obs[:, 0]), np.where(flag, 0, obs[:, 1])
    return np.where(x < goals[:, 0], 2, np.where(y < goals[:, 1], 1, 0))


# What gymnasium checks

def test_ids():
    worlds = 'Gridworld', 'GridworldExtrapolation', 'AntDir', 'AntGoal', 'CheetahVel'
    assert IDS == [f'ldm_nb/{w}{k}-v0' for w in worlds for k in ('', 'Trial')]

@pytest.mark.parametrize('k', GRID)
def test_checker(k):
    check_env(gym.make(k).unwrapped)
    for mode in ('ansi', 'rgb_array'): check_env(gym.make(k, render_mode=mode).unwrapped)

@pytest.mark.parametrize('k', GRID)
def test_passive_checker(k):
    "That is in the wrappers of gym.make; a whole task through it"
    env = gym.make(k, render_mode='ansi')
    env.reset(seed=0)
    over, n = False, 0
    while not over:
        _, _, terminated, over, _ = env.step(env.action_space.sample())
        n += 1
        assert not terminated and isinstance(env.render(), str)
    assert n == (120 if 'Trial' in k else 30)

@pytest.mark.parametrize('k', GRID)
def test_spec(k):
    "The spec is plain text and enough to make the environment again"
    again = gym.envs.registration.EnvSpec.from_json(gym.spec(k).to_json())
    env = gym.make(again)
    assert env.observation_space == gym.make(k).observation_space
    assert env.action_space == gym.spaces.Discrete(5) and env.observation_space.dtype == np.float32
    assert env.observation_space.high.tolist() == [6, 6, 1][:2 + ('Trial' in k)]

@pytest.mark.parametrize('k', BODIES)
def test_bodies(k):
    "gymnasium's checkers on the worlds of MuJoCo, one environment and a batch, and a step of each from the same start"
    pytest.importorskip('mujoco.batch', reason='needs MuJoCo 4')
    warnings.filterwarnings('ignore', message='.*Box observation space (minimum|maximum) value is')
    check_env(gym.make(k).unwrapped, skip_render_check=not opengl())
    env, envs = gym.make(k, split='test'), gym.make_vec(k, num_envs=3, split='test')
    assert type(envs.unwrapped) is WorldVectorEnv and env.action_space.shape == (6 if 'Cheetah' in k else 8,)
    task = WORLDS[k[7:].split('-')[0].removesuffix('Trial')]().family.splits['test'].tasks[-1]
    (a, _), (b, _) = env.reset(seed=4, options=dict(task=task)), envs.reset(seed=3, options=dict(task=task))
    action = envs.action_space.sample()
    one, three = env.step(action[1]), envs.step(action)
    assert np.array_equal(a, b[1]) and all(np.array_equal(x, y[1]) for x, y in zip(one[:4], three[:4]))
    with pytest.raises(ValueError, match='finite numbers for each of 3'): envs.step(np.full_like(action, np.nan))
    with pytest.raises(ValueError, match='finite numbers for each of 3'): envs.step(action[:, :5])

def test_body_trial():
    "Two episodes of 200 steps each, the flag on the last observation of both"
    pytest.importorskip('mujoco.batch', reason='needs MuJoCo 4')
    env = gym.make_vec('ldm_nb/CheetahVelTrial-v0', num_envs=2)
    env.reset(seed=0)
    out = [env.step(np.zeros((2, 6), np.float32)) for _ in range(400)]
    assert [t for t, o in enumerate(out) if o[0][:, -1].any()] == [199, 399]
    assert not any(o[2].any() for o in out) and out[-1][3].all() and not out[-2][3].any()

@pytest.mark.parametrize('trial', [False, True])
def test_vector_data(trial):
    "What a batch returns lies in its spaces, has gymnasium's types, and is not written to later"
    envs = gym.make_vec(TRIAL if trial else ONE, num_envs=3)
    seen = [envs.reset(seed=0)]
    for _ in range(130):
        obs, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
        assert obs in envs.observation_space and obs.dtype == reward.dtype == np.float32
        assert reward.shape == (3,) and terminated.dtype == truncated.dtype == bool
        seen.append((obs, info))
    for (a, i), (b, j) in zip(seen, seen[1:]):
        assert not np.shares_memory(a, b) and not any(np.shares_memory(i[k], j[k]) for k in i)

def test_statistics():
    "gymnasium's own bookkeeping works on top"
    env, envs = RecordEpisodeStatistics(gym.make(ONE)), VectorStatistics(gym.make_vec(ONE, num_envs=2))
    env.reset(options=dict(task=[0, 2]))
    envs.reset(options=dict(task=[0, 2]))
    for t in range(30): *_, info = env.step(int(t < 2))
    for t in range(30): *_, infos = envs.step([int(t < 2)]*2)
    assert info['episode']['l'] == 30 and np.allclose([info['episode']['r'], *infos['episode']['r']], 28.9)


# Known returns

@pytest.mark.parametrize('split,mean', [('train', 23.278), ('test', 24.5)])
def test_ceiling(split, mean):
    goals = RINGS[split]
    envs, returns = gym.make_vec(TRIAL, num_envs=len(goals), split=split), np.zeros((4, len(goals)))
    obs, _ = envs.reset(options=dict(task=goals, split=split))
    for t in range(120):
        obs, reward, *_ = envs.step(to_goal(obs, goals, obs[:, 2] == 1))
        returns[t//30] += reward
    assert np.allclose(returns, ceiling(torch.tensor(goals)), atol=1e-4)
    assert np.allclose(returns.mean(1), mean, atol=1e-3)

@pytest.mark.parametrize('split,mean', [('train', 23.278), ('test', 24.5)])
def test_ceiling_one(split, mean):
    env, returns = gym.make(ONE), []
    for goal in RINGS[split]:
        (obs, _), over = env.reset(options=dict(task=goal)), False
        returns.append(0)
        while not over:
            obs, reward, _, over, _ = env.step(to_goal(obs[None], goal[None], False)[0])
            returns[-1] += reward
    assert abs(np.mean(returns) - mean) < 1e-3


# Ends and flags

def test_flag():
    "The last observation of every episode is the terminal one, flag 1; the reset between episodes is never shown"
    env = gym.make(TRIAL)
    obs, info = env.reset(seed=0, options=dict(task=[0, 6]))
    assert obs.tolist() == [0, 0, 0] and (info['episode_index'], info['step']) == (0, 0)
    for t in range(120):
        obs, reward, terminated, truncated, info = env.step(1)
        k, s = divmod(t, 30)
        assert obs.tolist() == [0, min(s + 1, 6), s == 29] and (info['episode_index'], info['step']) == (k, s + 1)
        assert info['task'].tolist() == [0, 6] and not terminated and truncated == (t == 119)
        assert reward == pytest.approx(1 if s >= 5 else -.1)

def test_one_episode():
    env = gym.make(ONE)
    env.reset(seed=0, options=dict(task=[0, 2]))
    for t in range(30):
        obs, _, terminated, truncated, info = env.step(2)
        assert obs.tolist() == [min(t + 1, 6), 0] and (info['episode_index'], info['step']) == (0, t + 1)
        assert not terminated and truncated == (t == 29)

def test_death():
    "Death ends an episode; in a trial it is followed by the next, and only the last one ends it"
    env = WorldEnv(walker(), trial=False)
    env.reset(seed=0)
    assert [env.step([1., 0])[2:4] for _ in range(3)] == [(False, False), (False, False), (True, False)]
    env = WorldEnv(walker(), trial=True)
    first, _ = env.reset(seed=0)
    ends = [env.step([1., 0]) for _ in range(9)]
    assert [o[2] for o, *_ in ends] == [0, 0, 1]*3 and not any(terminated for _, _, terminated, *_ in ends)
    assert [truncated for *_, truncated, _ in ends] == [False]*8 + [True]
    a, b, c = first[:2], *(ends[i][0][:2] - [.4, 0] for i in (3, 6))
    assert min(abs(a - b).max(), abs(a - c).max(), abs(b - c).max()) > 1e-3   # each start has noise of its own

def test_death_at_the_last_step():
    env = WorldEnv(walker(), trial=False)
    env.reset(seed=0)
    for _ in range(5): assert env.step([0., 0])[2:4] == (False, False)
    env.batch.now['trial']['state'][:] = .9
    assert env.step([1., 0])[2:4] == (True, True)

def test_limit():
    "`max_episode_steps` cuts shorter, the same alone and in a batch"
    for k in (ONE, TRIAL):
        env, envs = gym.make(k, max_episode_steps=7), gym.make_vec(k, num_envs=2, max_episode_steps=7)
        env.reset(seed=0), envs.reset(seed=0)
        for t in range(7): assert env.step(0)[3] == envs.step([0, 0])[3].all() == (t == 6)
    env = gym.make(ONE, max_episode_steps=99)
    env.reset()
    assert [env.step(0)[3] for _ in range(30)].index(True) == 29


# A batch is n single environments

def test_batched():
    "make_vec makes the class that moves all in one tensor step"
    envs = gym.make_vec(TRIAL, num_envs=5)
    assert type(envs.unwrapped) is WorldVectorEnv and not hasattr(envs, 'envs')
    assert envs.metadata['autoreset_mode'] is AutoresetMode.NEXT_STEP
    calls = []
    world = replace(gridworld(), step=lambda *a: calls.append(a[2].shape) or gridworld().step(*a))
    envs = gym.make_vec(TRIAL, num_envs=5, world=world)
    envs.reset(seed=0)
    envs.step([0]*5)
    assert calls == [(5, 1)]

@pytest.mark.parametrize('mode', [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize('world', [gridworld(), walker()], ids=['gridworld', 'walker'])
@pytest.mark.parametrize('trial', [False, True])
@pytest.mark.parametrize('options', [None, dict(split='test'), dict(task=[0, 4])], ids=str)
def test_twin(mode, world, trial, options):
    "Everything gymnasium's loop over single environments returns, infos included, through several restarts"
    n, how = 4, dict(trial=trial, split='train')
    loop = SyncVectorEnv([lambda: WorldEnv(world, **how)]*n, autoreset_mode=mode)
    envs = WorldVectorEnv(world, n, autoreset_mode=mode, **how)
    envs.action_space.seed(1)
    assert envs.observation_space == loop.observation_space and envs.action_space == loop.action_space
    a, b, ends = envs.reset(seed=3, options=options), loop.reset(seed=3, options=options), 0
    assert data_equivalence(a, b, exact=True)
    for _ in range(3*world.steps + 5):
        action = envs.action_space.sample()
        obs, reward, *rest = envs.step(action)
        obs1, reward1, *rest1 = loop.step(action)
        assert data_equivalence(obs, obs1, exact=True) and data_equivalence(rest, rest1, exact=True)
        assert np.array_equal(reward, reward1)
        ends += (rest[0] | rest[1]).sum()
    assert ends >= 3*n
    if world.n_cells and not options: assert not np.array_equal(a[1]['task'], rest[2]['task'])  # new tasks were drawn

def test_tasks_each():
    "A list of n tasks, one to each; the tasks after them come from the split of make_vec"
    envs = gym.make_vec(ONE, num_envs=3, split='test')
    _, info = envs.reset(seed=0, options=dict(task=[[0, 2], (6, 6), [3, 3]]))
    assert info['task'].tolist() == [[0, 2], [6, 6], [3, 3]]
    for _ in range(31): *_, info = envs.step([0]*3)
    assert all(t in RINGS['test'].tolist() for t in info['task'].tolist()) and not info['step'].any()

TYPES = [[2, 6], (2., 6.), np.array([2, 6]), torch.tensor([2, 6])]

@pytest.mark.parametrize('task', TYPES, ids=lambda t: type(t).__name__)
def test_task_types(task):
    for env in (gym.make(ONE), gym.make_vec(ONE, num_envs=2)):
        assert np.all(env.reset(options=dict(task=task))[1]['task'] == [2, 6])
    each = task[None] if hasattr(task, 'shape') else [task]
    assert gym.make_vec(ONE, num_envs=1).reset(options=dict(task=each))[1]['task'].tolist() == [[2, 6]]


# Seeds

def test_seed():
    def run(seed):
        env, tasks = gym.make(TRIAL), []
        for s in (seed, None, None): tasks.append(env.reset(seed=s)[1]['task'].tolist())
        return tasks
    assert run(7) == run(7) and len({str(run(s)) for s in range(10)}) == 10

@pytest.mark.parametrize('split', ['train', 'test', 'all'])
def test_draws(split):
    "Over many resets every task of the split comes up, and no other"
    a = gym.make(ONE, split=split)
    b = gym.make(ONE)
    goals = {str(t.tolist()) for t in RINGS[split]}
    a.reset(seed=0), b.reset(seed=0)
    assert {str(a.reset()[1]['task'].tolist()) for _ in range(600)} == goals
    assert {str(b.reset(options=dict(split=split))[1]['task'].tolist()) for _ in range(600)} == goals

def test_seed_list():
    envs = gym.make_vec(ONE, num_envs=3)
    tasks = envs.reset(seed=[5, 6, 7])[1]['task']
    assert np.array_equal(tasks, gym.make_vec(ONE, num_envs=3).reset(seed=5)[1]['task'])
    assert envs.np_random_seed == (5, 6, 7) and len(envs.np_random) == 3
    envs.reset(seed=[5, None, 7])
    assert envs.np_random_seed == (5, 6, 7)

def test_given_generator():
    "The generator of `np_random` is the one that draws"
    env = gym.make(ONE).unwrapped
    env.np_random = np.random.default_rng(4)
    a = [env.reset()[1]['task'].tolist() for _ in range(5)]
    env.np_random = np.random.default_rng(4)
    assert a == [env.reset()[1]['task'].tolist() for _ in range(5)]

def test_world_drawn_uniformly():
    "Chi-squared of 4000 draws over the 18 training goals, 17 degrees of freedom: below the 99.9 % point"
    tasks = gym.make_vec(ONE, num_envs=4000).reset(seed=0)[1]['task']
    n = np.array([(tasks == g).all(1).sum() for g in RINGS['train']])
    assert ((n - 4000/18)**2/(4000/18)).sum() < 40.8


# Registration

def test_idempotent():
    code = ('import gymnasium as gym, importlib, warnings, ldm_nb.worlds.envs as e; warnings.simplefilter("error"); '
            'was = dict(gym.registry); e.register(); importlib.reload(e).register(); assert gym.registry == was; '
            'gym.make("ldm_nb/Gridworld-v0")')
    subprocess.run([sys.executable, '-c', code], check=True)

def test_import_in_id():
    "`gym.make('module:id')` is enough"
    code = 'import gymnasium as gym; gym.make("ldm_nb.worlds.envs:ldm_nb/GridworldTrial-v0").reset(seed=0)'
    subprocess.run([sys.executable, '-W', 'error::UserWarning', '-c', code], check=True)

def test_further_world(monkeypatch):
    "One line makes a further world known"
    monkeypatch.setitem(WORLDS, 'Walker', walker)
    try:
        assert register() == IDS + ['ldm_nb/Walker-v0', 'ldm_nb/WalkerTrial-v0']
        env = gym.make('ldm_nb/WalkerTrial-v0')
        env.reset(seed=0)
        assert env.step(np.array([.5, -.5]))[0].shape == (3,)
        assert env.action_space == gym.spaces.Box(-1, 1, (2,), np.float32)
        with warnings.catch_warnings():     # a world without cells has no bounds
            warnings.filterwarnings('ignore', message='.*Box observation space (minimum|maximum) value is')
            check_env(gym.make('ldm_nb/Walker-v0').unwrapped)
    finally:
        for k in ('ldm_nb/Walker-v0', 'ldm_nb/WalkerTrial-v0'): gym.registry.pop(k, None)


# Bad input

OPTIONS = {
    'outside the family': (dict(task=[1, 1]), 'gridworld has no task [1.0, 1.0]'),
    'between cells':      (dict(task=[2.5, 6]), 'has no task [2.5, 6.0]'),
    'not a number':       (dict(task=[float('nan'), 6]), 'has no task'),
    'outside the split':  (dict(task=[3, 3], split='train'), "no task [3.0, 3.0] in split 'train'"),
    'too long':           (dict(task=[2, 2, 2]), 'has 2 numbers'),
    'empty':              (dict(task=[]), 'has 2 numbers'),
    'a number':           (dict(task=2), 'has 2 numbers'),
    'a word':             (dict(task='goal'), 'a task of gridworld is'),
    'nothing':            (dict(task=None), 'a task of gridworld is'),
    'ragged':             (dict(task=[[2], 2]), 'a task of gridworld is'),
    'unknown split':      (dict(split='tset'), "did you mean 'test'?"),
    'no split':           (dict(split=None), 'no split is called None'),
    'unknown key':        (dict(goal=[2, 2]), "no reset option is called 'goal'"),
}

@pytest.mark.parametrize('options,message', OPTIONS.values(), ids=OPTIONS)
def test_bad_options(options, message):
    "They are refused, and nothing has moved"
    for env in (gym.make(ONE), gym.make_vec(ONE, num_envs=2)):
        env.reset(seed=1)
        want = env.reset()[1]['task'].tolist()
        env.reset(seed=1)
        with pytest.raises(ValueError) as e: env.reset(seed=5, options=options)
        assert message in str(e.value) and env.reset()[1]['task'].tolist() == want

def test_bad_counts():
    envs = gym.make_vec(ONE, num_envs=3)
    two = dict(task=[[2, 2], [6, 6]])
    with pytest.raises(ValueError, match='one task or 3 of them, not 2'): envs.reset(options=two)
    with pytest.raises(ValueError, match='one seed or 3 of them, not 2'): envs.reset(seed=[1, 2])
    with pytest.raises(ValueError, match='has 2 numbers'): gym.make(ONE).reset(options=dict(task=[[2, 2]]))
    with pytest.raises(ValueError, match='no task'): envs.reset(options=dict(task=[[2, 2], [6, 6], [1, 1]]))

ACTIONS = {'too large': 5, 'negative': -1, 'fraction': 1.5, 'float': 1., 'bool': True, 'word': 'up', 'nothing': None,
           'list': [1], 'two': [1, 2], 'nan': float('nan')}

@pytest.mark.parametrize('action', ACTIONS.values(), ids=ACTIONS)
def test_bad_actions(action):
    "They are refused, and the environment goes on from where it was"
    env, envs = gym.make(ONE), gym.make_vec(ONE, num_envs=2)
    env.reset(seed=0), envs.reset(seed=0)
    with pytest.raises(ValueError, match='integer from 0 to 4'): env.step(action)
    if not isinstance(action, list):
        with pytest.raises(ValueError, match='integer from 0 to 4 for each of 2'): envs.step([action]*2)
    assert env.step(1)[4]['step'] == 1 and envs.step(np.array([1, 2], np.uint8))[4]['step'].tolist() == [1, 1]

@pytest.mark.parametrize('action', [[0, 0, 0], [0], 0, [float('inf'), 0], [float('nan'), 0], ['a', 'b'], None], ids=str)
def test_bad_continuous_actions(action):
    env = WorldEnv(walker())
    env.reset(seed=0)
    with pytest.raises(ValueError, match='an action is 2 finite numbers; this'): env.step(action)
    assert env.step(np.array([1., -1.5]))[0].dtype == np.float32

def test_bad_make():
    for make in (gym.make, lambda *a, **k: gym.make_vec(*a, num_envs=2, **k)):
        with pytest.raises(ValueError, match="did you mean 'train'"): make(ONE, split='trian')
        with pytest.raises(ValueError, match="did you mean 'Gridworld'"): make(ONE, world='Gridwrld')
        with warnings.catch_warnings(), pytest.raises(ValueError, match="did you mean 'rgb_array'"):
            warnings.simplefilter('ignore')     # gym.make warns first
            make(ONE, render_mode='rgb')
        with pytest.raises(TypeError): make(ONE, colour='red')
    with pytest.raises(ValueError, match='num_envs must be at least 1'): gym.make_vec(ONE, num_envs=0)
    for k in (0, -3):
        with pytest.raises(ValueError, match='max_episode_steps must be at least 1'):
            gym.make_vec(ONE, max_episode_steps=k)
    with pytest.raises(ValueError, match='NEXT_STEP or SAME_STEP'): gym.make_vec(ONE, autoreset_mode='Disabled')
    with pytest.raises(ValueError, match='is not a valid AutoresetMode'): gym.make_vec(ONE, autoreset_mode='never')

def test_order():
    "A step before reset or after the end is an error"
    env, envs = gym.make(ONE), gym.make_vec(ONE, num_envs=2)
    for e, a in ((env, 0), (envs, [0, 0])):
        with pytest.raises(ResetNeeded): e.step(a)
    env.reset()
    for _ in range(30): env.step(0)
    with pytest.raises(ResetNeeded, match='call reset'): env.step(0)
    env.reset()
    env.step(0)


# Pictures

def test_render():
    env, envs = gym.make(TRIAL, render_mode='ansi'), gym.make_vec(TRIAL, num_envs=2, render_mode='rgb_array')
    env.reset(options=dict(task=[2, 1]))
    env.step(2)
    assert env.render().splitlines()[-2:] == ['. . G . . . .', '. A . . . . .'] and len(env.render().splitlines()) == 7
    env.step(2), env.step(1)
    assert env.render().splitlines()[-2] == '. . @ . . . .'
    envs.reset(options=dict(task=[[2, 1], [0, 6]]))
    a, b = envs.render()
    assert a.shape == b.shape == (168, 168, 3) and a.dtype == np.uint8 and (a != b).any()
    assert gym.make(TRIAL).unwrapped.render() is None and gym.make_vec(TRIAL, num_envs=2).render() is None

def test_render_terminal():
    "At the end of an episode the picture shows the terminal cell, as the observation does"
    env = gym.make(TRIAL, render_mode='ansi')
    env.reset(options=dict(task=[0, 6]))
    for _ in range(30): env.step(1)
    assert env.render()[0] == '@'

def test_no_cells():
    "A world without cells cannot be drawn, and says so"
    assert WorldEnv(walker()).metadata['render_modes'] == []
    assert WorldEnv.metadata['render_modes'] == ['ansi', 'rgb_array']    # of the class: as it was
    with pytest.raises(ValueError, match='no render mode'): WorldEnv(walker(), render_mode='ansi')
    with pytest.raises(ResetNeeded): Batch('Gridworld', 1, True, 'train', 'ansi').render()


# Time limits

STEPS = dict(Gridworld=(30, 120), GridworldExtrapolation=(30, 120), AntDir=(200, 400), AntGoal=(200, 400), CheetahVel=(200, 400))

@pytest.mark.parametrize('k', IDS)
def test_horizon(k):
    "Every id knows its length, and an environment of it ends there; wrappers that ask for it work"
    name = k[7:].split('-')[0]
    n = STEPS[name.removesuffix('Trial')][name.endswith('Trial')]
    env, envs = gym.make(k), gym.make_vec(k, num_envs=2)
    assert gym.spec(k).max_episode_steps == env.spec.max_episode_steps == envs.spec.max_episode_steps == n
    assert envs.unwrapped.batch.limit == env.unwrapped.batch.limit == n
    aware = TimeAwareObservation(env)
    assert aware.max_timesteps == n and aware.observation_space.shape[0] == env.observation_space.shape[0] + 1
    seen = [aware.reset(seed=0)[0], aware.step(np.zeros(env.action_space.shape, env.action_space.dtype))[0]]
    assert [x[-1] for x in seen] == pytest.approx([0, 1/n]) or [x[-1] for x in seen] == [0, 1]

def test_shorter():
    "`max_episode_steps` given to gymnasium is what the environment says and does, alone, in a batch and in a loop"
    for k in (ONE, TRIAL):
        env, envs, loop = gym.make(k, max_episode_steps=7), gym.make_vec(k, num_envs=2, max_episode_steps=7), gym.make_vec(k, 2, 'sync', max_episode_steps=7)
        assert env.spec.max_episode_steps == envs.spec.max_episode_steps == 7
        again = gym.make(env.spec), gym.make_vec(envs.spec)
        for e in (env, envs, loop, *again):
            e.reset(seed=0)
            ends = [np.all(e.step(e.action_space.sample())[3]) for _ in range(7)]
            assert ends == [False]*6 + [True]

def test_longer():
    "An id does not cut another world short without a word; without an id it has its own length"
    long = gridworld(episodes=9)
    for make in (gym.make, lambda *a, **k: gym.make_vec(*a, num_envs=2, **k)):
        with pytest.raises(BadInput, match='Trial-v0 ends after 120 steps, and this world after 270: make a WorldEnv'): make(TRIAL, world=long)
    env = WorldEnv(long)
    env.reset(seed=0)
    assert [env.step(0)[3] for _ in range(270)].index(True) == 269
    short = gym.make(ONE, world=walker())
    short.reset(seed=0)
    assert [short.step([0., 0])[3] for _ in range(6)] == [False]*5 + [True]


# Actions as they will be used

@pytest.mark.parametrize('number', [1e300, -1e30, 1e7, 3.5e38, float('inf'), float('nan')])
def test_large_actions(number):
    "Refused where single precision, or the square of it in a reward, could not hold them; nothing has moved"
    for k in (x for x in BODIES if 'Trial' not in x):
        env, envs = gym.make(k), gym.make_vec(k, num_envs=2)
        env.reset(seed=0), envs.reset(seed=0)
        a = np.zeros(envs.action_space.shape)
        a[1, 2] = number
        with pytest.raises(BadInput, match=r'finite numbers; this has \S+ at \[2\]'): env.step(a[1])
        with pytest.raises(BadInput, match=r'finite numbers for each of 2 environments; this has \S+ at \[1, 2\]'): envs.step(a)
        with pytest.raises(BadInput): env.step(a[1].tolist())
        assert env.step(0*a[0])[4]['step'] == 1
        a[1, 2] = -1e6
        assert np.isfinite(envs.step(a)[1]).all()

@pytest.mark.parametrize('action,message', [
    (np.zeros((3, 8)), 'this is float64 of shape (3, 8): [[0. 0. ... 0. 0.] [0. 0. ... 0. 0.] [0. 0. ... 0. 0.]]'),
    (np.arange(5000, dtype=np.float32), 'this is float32 of shape (5000,): [0.000e+00 1.000e+00 ... 4.998e+03 4.999e+03]'),
    (np.zeros((2, 8), bool), 'this is bool of shape (2, 8): '), ([[1.], 2], 'this is object: list([[1.0], 2])'),
    ('north', "this is text: 'north'"), (None, 'this is object: None'), (3, 'this is int64: 3')], ids=str)
def test_message(action, message):
    "A wrong action is shown on one short line, with its type and its shape"
    envs = gym.make_vec('ldm_nb/AntDir-v0', num_envs=2)
    envs.reset(seed=0)
    with pytest.raises(BadInput) as e: envs.step(action)
    said = str(e.value)
    assert said.startswith('an action is 8 finite numbers for each of 2 environments; ' + message) and len(said) < 190 and '\n' not in said
    env = gym.make('ldm_nb/AntDir-v0').unwrapped
    env.reset(seed=0)
    with pytest.raises(BadInput, match='^an action is 8 finite numbers; this is'): env.step(action)

TASKS = {'huge': [1e300, 0], 'truth': [True, False], 'complex': np.array([1+1j, 0]), 'whole but too large': [10**30, 0]}

@pytest.mark.parametrize('task', TASKS.values(), ids=TASKS)
def test_task_casts(task):
    "A task is checked as it was given and as it will be used"
    with pytest.raises(BadInput, match='ant-goal (has no task \\[1e\\+300, 0.0\\]|is )'): gym.make('ldm_nb/AntGoal-v0').reset(options=dict(task=task))

def test_kinds():
    "Numbers of environments and steps are whole; options are a dict"
    for bad in (2.5, '3', True):
        with pytest.raises(BadInput, match='num_envs must be at least 1, and whole'): gym.make_vec(ONE, num_envs=bad)
    with pytest.raises(BadInput, match='options are a dict'): gym.make(ONE).reset(options=[1])


# Pictures of robots

@pytest.fixture
def gl():
    if not opengl(): pytest.skip('needs OpenGL')

ROBOTS = [k for k in BODIES if 'Trial' not in k]

@pytest.mark.parametrize('k', ROBOTS)
def test_robot_pictures(k, gl):
    "One picture for each environment, alone as in a batch; no renderer before the first picture, none after closing, and a new one if wanted"
    env, envs = gym.make(k, render_mode='rgb_array'), gym.make_vec(k, num_envs=2, render_mode='rgb_array')
    assert env.metadata['render_fps'] == envs.metadata['render_fps'] == 20 and env.metadata['render_modes'] == ['rgb_array']
    env.reset(seed=4), envs.reset(seed=3)
    a = np.zeros(envs.action_space.shape, np.float32)
    for _ in range(3): env.step(a[0]), envs.step(a)
    assert env.unwrapped.batch.pictures.renderer is None
    one, (other, two) = env.render(), envs.render()
    assert one.shape == (360, 480, 3) and one.dtype == np.uint8 and np.array_equal(one, two) and (one != other).any()
    assert env.unwrapped.batch.pictures.renderer.gl
    env.close()
    assert env.unwrapped.batch.pictures.renderer is None and np.array_equal(env.unwrapped.render(), one)
    with pytest.raises(ValueError, match='there are: rgb_array'): WorldEnv(k[7:].split('-')[0], render_mode='ansi')

def test_robot_paths():
    "A picture knows where the robot went in this episode: it begins at the episode's start, which a trial does not show, and ends where it is seen"
    env = WorldEnv('CheetahVel', render_mode='rgb_array')
    env.reset(seed=0)
    paths = []
    for t in range(203):
        env.step(np.ones(6))
        paths.append(np.array(env.batch.pictures.paths[0]))
    assert [len(p) for p in paths] == [*range(2, 202), 2, 3, 4]
    assert abs(paths[199][-1, 0]) > .3 and abs(paths[200][0, 0]) < .11       # terminal, as the observation; then the next start
    env.reset()
    assert len(env.batch.pictures.paths[0]) == 1

def test_pictures_copied(gl):
    "A renderer is neither pickled nor shared, and one inherited by a fork is left alone; threads draw at once"
    env = WorldEnv('AntGoal', render_mode='rgb_array')
    env.reset(seed=0)
    want = env.render()
    for twin in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        assert twin.batch.pictures.renderer is None and np.array_equal(twin.render(), want)
    got = []
    threads = [threading.Thread(target=lambda e=e: got.append(np.array_equal(e.render(), want))) for e in (env, copy.deepcopy(env))]
    for t in threads: t.start()
    for t in threads: t.join()
    assert got == [True, True]
    child = multiprocessing.get_context('fork').Process(target=env.close)
    child.start()
    child.join(20)
    assert child.exitcode == 0 and np.array_equal(env.render(), want)
