"Worlds as strangers write them: ten fields are enough everywhere, and what is wrong with one is said in words"
import json, re
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest
import torch
from ldm_nb.belief.buffer import BUDGET, capacity, slots_of, stored
from ldm_nb.core.errors import BadInput
from ldm_nb.core.remade import remade
from ldm_nb.core.seeds import generators
from ldm_nb.evaluation.evaluate import evaluate, outcome, summary, table
from ldm_nb.evaluation.motion import film, check_film, view
from ldm_nb.evaluation.pictures import cells_of, draw_imagined, draw_map, draw_path, spots
from ldm_nb.lab.jobs import job, map_pictures, pictures
from ldm_nb.lab.presets import WORLDS, check, override, check_simulator
from ldm_nb.methods import ldm, mixreg, rl2, varibad
from ldm_nb.methods.rl2 import number_world
from ldm_nb.training.trainer import Progress, train
from ldm_nb.worlds.check import check_world, findings, play, random_actions
from ldm_nb.worlds.envs import WorldEnv, WorldVectorEnv, drawing, picture
from ldm_nb.worlds.film import camera
from ldm_nb.worlds.gridworld import GRIDWORLD, cells, gridworld
from ldm_nb.worlds.robots import ant_goal
from ldm_nb.worlds.tasks import Box, Codec, Discrete, Family, Goal, Map, Rewards, Simulator, Split, World, finite, union

FREE = [(x, y) for x in range(5) for y in range(5) if (x, y) not in ((1, 1), (1, 2), (3, 3), (3, 4))]
MOVES = torch.tensor([[0., 0], [0, 1], [1, 0], [0, -1], [-1, 0]])

@remade
def maze(walls=True):
    "A maze of five by five cells, four of which are walls; with its map, if wanted"
    spots, index = torch.tensor(FREE).float(), torch.full((5, 5), -1)
    index[tuple(spots.long().T)] = torch.arange(len(FREE))
    def step(cell, goal, action):
        there = (cell + MOVES[action]).clamp(0, 4)
        there = torch.where((index[there.long().unbind(-1)] >= 0)[..., None], there, cell)
        return there, (there == goal).all(-1).float(), None
    family = Family('maze', ('x', 'y'), dict(train=finite(spots[3:12]), test=finite(spots[12:])))
    flags = torch.nn.functional.pad(spots, (0, 1))
    return World(family, 2, Discrete(5), 8, 2, start=lambda goal, u: 0*goal, step=step, observe=lambda cell: cell,
                 map=Map(lambda obs: index[obs[..., :2].long().unbind(-1)], flags) if walls else None)

def point_step(x, task, action):
    x = x + .3*action.clamp(-1, 1)
    return x, -(x - task).norm(dim=-1), x.norm(dim=-1) > 1.

@remade
def point():
    "A point that is pushed about and dies beyond one metre"
    def circle(low, high):
        def sample(u): return torch.cat([torch.cos(low + (high - low)*u), torch.sin(low + (high - low)*u)], -1)*.8
        def contains(x):
            a = torch.atan2(x[..., 1], x[..., 0]) % (2*torch.pi)
            return (a > low - 1e-4) & (a < high + 1e-4) & ((x.norm(dim=-1) - .8).abs() < 1e-4)
        return Split(sample(torch.linspace(0, 1, 4)[:, None]), sample, contains)
    return World(Family('point', ('x (m)', 'y (m)'), dict(train=circle(0., 3.), test=circle(3.5, 6.))), 2, Box(2), 6, 2,
                 start=lambda task, u: 0*task if u is None else .1*u, step=point_step, observe=lambda x: x, reset_noise=2, deaths=True)

@remade
def cliff():
    "A corridor with an abyss at its left end"
    def step(cell, goal, action):
        cell = cell + action[..., None]*2 - 1
        return cell.clamp(0, 8), (cell == goal).all(-1).float(), (cell < 1)[..., 0]
    a, b = (finite(torch.tensor([[x], [x + 1]])) for x in (5., 7.))
    return World(Family('cliff', ('goal',), dict(train=a, test=b)), 1, Discrete(2), 6, 2, lambda goal, u: 0*goal + 3, step, lambda cell: cell,
                 deaths=True, map=Map(lambda obs: obs[..., 0].long(), torch.stack([torch.arange(9.), torch.zeros(9)], 1)))

STRANGERS = dict(maze=maze, plain=lambda: maze(False), point=point, cliff=cliff, number=number_world)


# What the parts say

def test_the_first_example_runs():
    "The world at the top of the page and the one in its last section are the same text, of at most 20 lines"
    nb = json.loads(Path('nbs/worlds/100_tasks.ipynb').read_text())
    text = {c['id']: ''.join(c['source']) for c in nb['cells']}
    shown = re.search('```python\n(.*?)\n```', text['10019001'], re.S)[1]
    assert shown == text['414a867a'] and len(shown.splitlines()) <= 20
    space = dict(finite=finite, Family=Family, World=World, Discrete=Discrete, torch=torch)
    exec(shown, space)
    assert check_world(space['corridor']) is space['corridor']

@pytest.mark.parametrize('name', [*WORLDS, *STRANGERS])
def test_worlds_pass(name):
    world = (WORLDS | STRANGERS)[name]()
    assert check_world(world, seed=3) is world

def test_derived_splits():
    "A family of two splits has four; draws come from both, by the lengths of their lists; nothing given is replaced"
    f = maze().family
    assert list(f.splits) == ['train', 'test', 'eval', 'all'] and len(f.splits['eval'].tasks) == len(FREE) - 3
    s = f.splits['all']
    drawn = s.sample(torch.rand(4000, s.noise, generator=torch.Generator().manual_seed(0)))
    assert s.contains(drawn).all() and abs(f.splits['train'].contains(drawn).float().mean() - 9/18) < .03
    assert GRIDWORLD.splits['eval'].tasks[0].tolist() == [0., 2.] and len(GRIDWORLD.splits) == 4
    assert len(union(f.splits['train'], f.splits['train']).tasks) == 9
    given = dict(train=f.splits['train'], test=f.splits['test'])
    Family('x', ('x', 'y'), given)
    assert list(given) == ['train', 'test']

@pytest.mark.parametrize('name', STRANGERS)
def test_default_codec(name):
    "Actions of either kind, tasks of different lengths; a changed world gets a codec of its size"
    world = STRANGERS[name]()
    g = torch.Generator().manual_seed(0)
    s = world.family.splits['train']
    task = s.sample(torch.rand(2, 5, s.noise, generator=g))
    x = play(world, task, g)
    code = world.codec.pack(x['obs'], x['action'], x['reward'], x['valid'], task)
    back = world.codec.unpack(code[:, [4, 1]])
    assert code.shape == (2, 5, world.codec.code_bytes) and code.dtype == torch.uint8
    for k, v in dict(first=x['obs'][:, 0], after=x['obs'][:, 1:], action=x['action'], reward=x['reward'], before=x['obs'][:, :-1]).items():
        v = v[:, [4, 1]] if k == 'first' else v[:, :, [4, 1]]
        assert torch.equal(getattr(back, k), v) and getattr(back, k).dtype == v.dtype
    assert (back.valid is None) == (not world.deaths) and (not world.deaths or torch.equal(back.valid, x['valid'][:, :, [4, 1]]))
    if name in ('point', 'cliff'): assert not x['valid'].all()
    assert replace(world, horizon=50).codec.code_bytes > world.codec.code_bytes

def test_buffers_have_a_budget():
    "Plain floats are bounded, codecs of our own are not; all that counts tasks agrees"
    world, cfg = maze(), ldm.LDM()
    room = capacity(world, 100_000)
    assert room*world.codec.code_bytes <= BUDGET < (room + 1)*world.codec.code_bytes
    assert capacity(gridworld(), 100_000) == capacity(ant_goal(), 100_000) == 100_000
    assert capacity(replace(world, horizon=10**6), 50) == 1 and capacity(world, 50) == 50
    assert stored(cfg, world, 10**6) == room and stored(cfg, gridworld(), 10**6) == 100_000
    at = slots_of(cfg, world, room//14)
    assert at['at'].max() < room and at['held'] == room
    with pytest.raises(BadInput, match='hold an iteration'): check(cfg, replace(world, horizon=10**5, map=None))


# Where a world's parts are asked

def test_walls_are_drawn():
    lines = drawing(maze(), torch.tensor([0., 1., 0.]), torch.tensor([4., 4.]))
    assert lines == ['. . . # G', '. . . # .', '. # . . .', 'A # . . .', '. . . . .'] and picture(lines).shape == (120, 120, 3)
    assert drawing(cliff(), torch.tensor([3., 1.]), torch.tensor([5.])) == ['. . . A . G . . .']
    assert drawing(maze(), torch.tensor([4., 4., 1.]), torch.tensor([4., 4.]))[0][-1] == '@'
    from matplotlib.figure import Figure
    ax = Figure().subplots()
    drawn = draw_map(ax, maze(), torch.linspace(0, 1, len(FREE)))
    assert drawn.get_array().mask.sum() == 4 and np.isnan(ax.images[0].get_array().filled(np.nan)).sum() == len(FREE)

@pytest.mark.parametrize('make', [maze, cliff])
def test_pictures_of_strangers(make):
    "Paths, whatever the lengths of episodes; imagined tasks; mazes that do not begin at zero"
    world, g = make(), torch.Generator().manual_seed(1)
    task = world.family.splits['test'].tasks[None, :2]
    x = play(world, task, g)
    fig = draw_path(world, x['obs'][0, :, 0], task[0, 0], torch.rand(9, world.n_cells, generator=g), 'title')
    titles = [ax.get_title() for ax in fig.axes]
    assert titles[0] == 'episode 1, step 0' and not any('episode 3' in t for t in titles)
    assert draw_imagined(world, task[0], torch.rand(3, 2), torch.rand(3, world.n_cells)).axes
    assert cells_of(world, task).shape == (1, 2) and cells_of(world, task + .5) is None
    assert torch.equal(spots(world, x['obs'])[..., 0], x['obs'][..., 0])

def test_a_continuous_world_needs_no_simulator(tmp_path):
    "No camera, no view, no films, nothing to load; gymnasium takes it"
    world = point()
    assert camera(world) is None and view(world) is None and check_simulator(world) is None
    with pytest.raises(BadInput, match='there is no picture of point: it has neither a map nor a body'): check_film(world, tmp_path/'x.gif')
    assert camera(replace(world, simulator=Simulator())) is None and view(replace(world, simulator=Simulator(shown='goal'))) is None
    env = WorldVectorEnv(world, 3)
    env.reset(seed=0)
    for _ in range(4): obs, *_ = env.step(np.zeros((3, 2), np.float32))
    env.close()
    with pytest.raises(BadInput, match='render mode'): WorldEnv(world, render_mode='rgb_array')
    film(maze(), torch.tensor([4., 4.]), torch.tensor(FREE[:3]).float(), tmp_path/'maze.gif')
    assert (tmp_path/'maze.gif').stat().st_size > 1000

SMALL = dict(vae_batch=4, buffer_size=40, workers=6)

LONG = dict(chunk=12, old_values='recomputed', encoder_loss='elbo', decoder='single-head', posteriors=6) # tasks may end early

@pytest.mark.parametrize('method,make,more', [
    (ldm.METHOD, maze, dict(posteriors=6)), (ldm.METHOD, lambda: maze(False), dict(posteriors=6, p_drop=.2)),
    (varibad.METHOD, maze, dict(precollect=0)), (rl2.METHOD, lambda: maze(False), {}),
    *((m, point, dict(chunk=12, posteriors=6, transitions=5, minibatches=2)) for m in (ldm.METHOD, rl2.METHOD, varibad.METHOD, mixreg.METHOD)),
    *((m, cliff, LONG) for m in (ldm.METHOD, rl2.METHOD, varibad.METHOD, mixreg.METHOD))])
def test_strangers_train(method, make, more):
    "Two iterations, finite numbers, an evaluation with its table"
    world = make()
    base = {} if world.n_actions else {k: v for k, (v, _) in method.continuous.items()}
    wish = {k: v for k, v in (base | SMALL | more).items() if k in settings_of(method)}
    cfg = check(override(method.config(), **wish), world, method)
    gens = generators([0, 1])
    p = train(method, cfg, world, gens, Progress([0, 1], method.init(cfg, world, gens)), 3, 100)
    assert not p.frozen and p.iteration == 3
    out = outcome(world, evaluate(world, method.agent(cfg, p.state, True), gens['eval'], 'eval'))
    assert set(summary(world, out)[0]) >= {'train', 'test'} and 'test' in table(world, out, 'x')

def test_many_heads_where_tasks_end_early():
    "The multi-head decoder counts every step of a task; the defaults choose the other one, and a wish for it is refused"
    from ldm_nb.lab.entries import default_settings
    cfg = default_settings(cliff(), 'varibad')
    assert cfg.vae.decoder == 'single-head' and check(cfg, cliff(), varibad.METHOD) == cfg
    with pytest.raises(BadInput, match='tasks of cliff may end early, set it to single-head'):
        check(override(cfg, decoder='multi-head'), cliff(), varibad.METHOD)

def settings_of(method):
    from ldm_nb.lab.presets import settings
    return settings(method.config())


@pytest.mark.parametrize('make,files', [(maze, ['path.png', 'imagined.png']), (lambda: maze(False), []), (cliff, ['path.png', 'imagined.png'])],
                         ids=['maze', 'plain', 'cliff'])
def test_a_finished_run_is_drawn(make, files, tmp_path):
    "A world without `reached` has no fate in its title; one without a map has no pictures but curves"
    world, cfg = make(), override(ldm.LDM(), workers=6, buffer_size=40, vae_batch=4)
    j = job(tmp_path, dict(world='maze', method='ldm', seeds=[0, 1], frames=0, device='cpu'), world, ldm.METHOD, cfg)
    assert [f.name for f in pictures(j)] == files
    if files: assert map_pictures(j, 'maze, ldm')['path.png'].get_suptitle() == 'maze, ldm, seed 0'


# What is wrong, in words

GOOD = maze()

def broken(**parts): return lambda: replace(GOOD, **parts)

def stepping(f): # f: state, reward, died, task -> what the step gives
    def step(state, task, action):
        after, reward, died = GOOD.step(state, task, action)
        return f(after, reward, died, task)
    return step

def other_family(**splits): return Family('maze', ('x', 'y'), GOOD.family.splits | splits, ())

def drifting():
    "A world with a state of its own"
    kept = dict(n=0)
    def step(state, task, action):
        kept['n'] += 1
        return state, task[..., 0]*0 + kept['n'], None
    return replace(GOOD, step=step)

def overwriting():
    "A world that gives the same tensor each time"
    room = {}
    def step(state, task, action):
        after, reward, died = GOOD.step(state, task, action)
        out = room.setdefault(tuple(reward.shape), torch.zeros_like(reward))
        return after, out.copy_(task[..., 0]), died
    return replace(GOOD, step=step)

def inplace(state, task, action):
    state += MOVES[action]
    return state.clamp_(0, 4), state[..., 0]*0, None

LINE = Split(torch.tensor([[.2, .2]]), lambda u: u.expand(*u.shape[:-1], 2), lambda x: (x >= 0).all(-1) & (x <= .6).all(-1))
INSIDE = Split(LINE.tasks, lambda u: LINE.sample(.6*u), LINE.contains)
CODEC = gridworld().codec
MISTAKES = {
    'horizon': (broken(horizon=0), 'horizon is 0: give a whole number, at least 1'),
    'episodes': (broken(episodes=-2), 'episodes is -2: give a whole number'),
    'obs_dim': (broken(obs_dim=3), r'the observation has the shape \(2, 8, 2\): give \[S,B,O\], which was \(2, 8, 3\)'),
    'actions': (broken(actions=5), r'actions is 5: give Discrete\(5\)'),
    'no actions': (broken(actions=Discrete(0)), r'actions is Discrete\(n=0\): give a whole number'),
    'kind of a part': (broken(goal=lambda reward: reward > 0), 'goal is <function.*: give a Goal'),
    'kind of a codec': (broken(codec=5), 'codec is 5: give a Codec'),
    'kind of reward': (broken(rewards=Rewards('logit')), "rewards.kind is 'logit': give 'binary' or 'real'"),
    'a maker': (lambda: maze, 'takes a World, not function: call the function that makes it'),
    'no training split': (lambda: replace(GOOD, family=Family('m', ('x', 'y'), dict(test=GOOD.family.splits['test']))), "has no split 'train'"),
    'shared tasks': (lambda: replace(GOOD, family=Family('m', ('x', 'y'), dict(train=finite(torch.eye(2)), test=finite(torch.eye(2))))), 'share the tasks'),
    'overlap': (lambda: replace(GOOD, family=Family('m', ('x', 'y'), dict(
        train=INSIDE, test=Split(LINE.tasks + .7, lambda u: INSIDE.sample(u) + .4, lambda x: (x > .3).all(-1))))), "splits 'train' and 'test' overlap: 'train' draws"),
    'width of tasks': (lambda: replace(GOOD, family=Family('m', ('goal',), GOOD.family.splits)), r"the fixed list of split 'train' has the shape \(9, 2\): give \[K,D\]"),
    'outside': (lambda: replace(GOOD, family=other_family(train=LINE)), "a sample of split 'train' holds .*, which `contains` denies"),
    'random tasks': (lambda: replace(GOOD, family=other_family(train=Split(LINE.tasks, lambda u: torch.rand(*u.shape[:-1], 2)*.6, LINE.contains))),
                     "gives other tasks for the same noise"),
    'double tasks': (lambda: replace(GOOD, family=other_family(all=finite(torch.tensor(FREE).double()))), 'of torch.float64: give torch.float32'),
    'state without workers': (broken(start=lambda task, u: torch.zeros(2)), r'the state of start is \(2,\): give a tensor whose first axes are seeds and workers'),
    'start without noise': (broken(start=lambda task, u: 0*task + u, reset_noise=2), r'start without noise \(u is None\) was called with .*None and raised TypeError'),
    'shape of observe': (broken(observe=lambda cell: cell[..., 0]), r'the observation has the shape \(2, 8\)'),
    'double observation': (broken(observe=lambda cell: cell.double()), r'the observation is of torch.float64: give torch.float32, `.float\(\)` makes it'),
    'nan': (broken(observe=lambda cell: cell/cell), 'the observation is not finite in 32 of 32 numbers'),
    'two values': (broken(step=stepping(lambda s, r, d, t: (s, r))), 'step gives 2 values: give three'),
    'next state': (broken(step=stepping(lambda s, r, d, t: (s[..., :1], r, d))), r'the next state has the shape \(2, 8, 1\): give what start gives'),
    'reward not batched': (broken(step=stepping(lambda s, r, d, t: (s, r.mean(), d))), r'the reward has the shape \(\): give \[S,B\]'),
    'reward of one axis more': (broken(step=stepping(lambda s, r, d, t: (s, r[..., None], d))), r'the reward has the shape \(2, 8, 1\)'),
    'integer reward': (broken(step=stepping(lambda s, r, d, t: (s, r.long(), d))), 'the reward is of torch.int64: give torch.float32'),
    'died though nobody dies': (broken(step=stepping(lambda s, r, d, t: (s, r, r > 9))), 'step says who died, though deaths is False: say deaths=True'),
    'nobody died': (broken(deaths=True), 'died is None, though deaths is True'),
    'died is a number': (broken(deaths=True, step=stepping(lambda s, r, d, t: (s, r, r))), 'died is of torch.float32: give torch.bool, a comparison makes it'),
    'a failure': (broken(step=lambda state, task: None), 'step was called with .*and raised TypeError'),
    'a state of its own': (drifting, 'the reward differs between two equal calls: keep nothing between calls'),
    'randomness of its own': (broken(step=stepping(lambda s, r, d, t: (s, torch.rand_like(r), d))), 'the reward differs between two equal calls.*draw nothing'),
    'changed in place': (broken(step=inplace, start=lambda task, u: torch.zeros_like(task)), r'the state is changed in place by step.*not `x \+= 1`'),
    'overwritten': (overwriting, 'the reward is overwritten by a later call'),
    'workers': (broken(step=stepping(lambda s, r, d, t: (s - s.mean(1, keepdim=True), r, d))), 'the next state of a worker depends on other workers'),
    'seeds': (broken(step=stepping(lambda s, r, d, t: (s, r + t[..., 0].mean(0, keepdim=True), d))), 'the reward of a seed depends on other seeds'),
    'late infinity': (broken(step=stepping(lambda s, r, d, t: (s, torch.where(GOOD.family.splits['test'].contains(t), torch.inf, r), d))),
                      r"the reward is not finite in step 0 of the task \[.*\] of split 'test'"),
    'boolean target': (broken(rewards=Rewards('binary', target=lambda r: r == 1)), 'rewards.target is of torch.bool: give torch.float32'),
    'target of a logit': (broken(rewards=Rewards('binary', target=lambda r: 2*r - 1)), "of kind 'binary' a target is from 0 to 1"),
    'imagine': (broken(rewards=Rewards(imagine=lambda out: out.mean())), r'rewards.imagine has the shape \(\)'),
    'code bytes': (lambda: replace(gridworld(), codec=CODEC._replace(code_bytes=7)), r'codec.pack gives has the shape \(2, 3, 41\).*\(2, 3, 7\)'),
    'lossy codec': (lambda: replace(gridworld(), codec=CODEC._replace(pack=lambda *a: CODEC.pack(*a)//2)), 'after comes back from the codec changed'),
    'lost actions': (lambda: replace(gridworld(), codec=CODEC._replace(unpack=lambda c: CODEC.unpack(c)._replace(action=0*CODEC.unpack(c).action))),
                     'action comes back from the codec changed, and leads elsewhere'),
    'three values of a codec': (lambda: replace(gridworld(), codec=CODEC._replace(unpack=lambda c: CODEC.unpack(c)[1:4])), 'codec.unpack gives tuple: give a Stored'),
    'cells': (broken(map=replace(GOOD.map, places=GOOD.map.places.flip(0))), 'it must be the inverse of map.places'),
    'missing cells': (broken(map=Map(lambda obs: cells(obs).clamp(max=9), torch.tensor([[0., y, 0] for y in range(7)]))), 'map.cells gives 0 to 9 in a task: there are places 0 to 6'),
    'flags of places': (broken(map=replace(GOOD.map, places=GOOD.map.places + torch.tensor([0., 0, 1]))), 'map.places has flags'),
    'distinct': (lambda: replace(gridworld(), map=replace(gridworld().map, n_distinct=7)), 'map.distinct gives 53 slots, n_distinct is 7'),
    'reached': (broken(goal=Goal(reached=lambda r: r)), 'goal.reached is of torch.float32: give torch.bool'),
    'shape of reached': (broken(goal=Goal(reached=lambda r: (r > 0).any(1))), 'goal.reached has the shape'),
    'ceiling': (broken(goal=Goal(ceiling=lambda tasks: tasks[:, 0]*0 - 1)), 'goal.ceiling is -1 for the task .*random actions earned'),
    'shape of ceiling': (broken(goal=Goal(ceiling=lambda tasks: tasks)), r'goal.ceiling has the shape \(6, 2\): give \[K\]'),
    'lost': (broken(simulator=Simulator(lost=lambda obs, end, taken: end.float())), 'simulator.lost is of torch.float32: give torch.bool')}

@pytest.mark.parametrize('name', MISTAKES)
def test_mistakes_are_said(name):
    make, says = MISTAKES[name]
    with pytest.raises(BadInput) as e: check_world(make())
    assert re.search(says, str(e.value), re.S), str(e.value)
    assert all(len(l) < 400 for l in str(e.value).splitlines())

def test_all_findings_come_at_once():
    "A numbered list, and nothing that follows from an earlier finding"
    with pytest.raises(BadInput) as e:
        check_world(replace(GOOD, deaths=True, observe=lambda cell: cell.double(), step=stepping(lambda s, r, d, t: (s, r[..., None], d))))
    lines = str(e.value).splitlines()
    assert lines[0] == 'maze, one step: 3 things to mend' and [l[:3] for l in lines[1:]] == ['1. ', '2. ', '3. ']

def test_check_draws_nothing_of_its_own():
    "The global generator of torch is left alone, and the same seed says the same"
    torch.manual_seed(0)
    check_world(GOOD)
    a = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(a, torch.rand(1))
    g = [torch.Generator().manual_seed(5) for _ in range(2)]
    assert torch.equal(*(random_actions(GOOD, x, 3, 4) for x in g)) and findings(lambda: iter(())) == []
