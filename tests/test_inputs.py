"""Hundreds of malformed values for the command line and the config loader: status 2, a short message naming field, value and
what is allowed; no traceback, no folder."""
import contextlib, io, json, math, os, re, shutil

import pytest
from hypothesis import HealthCheck, given, settings as hyp, strategies as st

from ldm_nb.lab import cli
from ldm_nb.lab.cli import main
from ldm_nb.core.settings import rules
from ldm_nb.lab.entries import with_options
from ldm_nb.lab.presets import METHODS, PRESETS, WORLDS, preset, refusal
from ldm_nb.lab.config import read_config

pytestmark = pytest.mark.usefixtures('no_pictures')

def many(n): return hyp(max_examples=n, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))


def ldm(*argv):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: main(list(argv))
        except SystemExit as e: return e.code, out.getvalue(), err.getvalue()

def squeezed(text): return re.sub(r'[\s│─╭╮╰╯]', '', text)

def names(message, field, value=None):
    "Is the field named, in a message of a few lines, and the value?"
    text = squeezed(message)
    assert 'Traceback' not in message and len(text) < 800, message
    assert any(squeezed(f) in text for f in (field, field.replace('_', '-'), field.replace('-', '_'))), message
    seen = value is None or squeezed(value)[:12] in text or (number(value, float) is not None and str(float(value)) in text)
    assert seen, (value, message)


# Values of a command line

words = st.text(st.characters(codec='ascii', categories=['L', 'N', 'P', 'S'], exclude_characters='\'"\\[]`'), min_size=1, max_size=20)

def number(text, kind):
    try: return kind(text)
    except (ValueError, OverflowError): return None

def bad_number(kind, low, high):
    "Words, and numbers out of range"
    far = st.one_of(st.integers(max_value=low - 1 if low == int(low) else int(low) - 1), st.integers(min_value=int(high) + 1)).map(str)
    odd = st.sampled_from(['nan', 'inf', '-inf', '1e999', '', ' ', '1.5.2', '0x', '1e', '--', 'None', 'true', '9'*5000])
    def bad(text): return (x := number(text, kind)) is None or not low <= x <= high
    return st.one_of(far, odd, words, st.floats().map(str)).filter(bad)

def bad_word(choices): return words.filter(lambda w: w not in choices and not w.startswith('-'))

bad_seeds = st.one_of(st.sampled_from(['', ' ', '0:20000000', '0:9999999999', '9'*5000, '4:4', '5:3', '1,1', '-1', '0:99999', '3,', ',3', '1:2:3', '99999999999', '1.5', '0:4:']),
                      words.filter(lambda w: not re.fullmatch(r'\d+(:\d+|(,\d+)*)', w.strip())))

def options(world, method):
    "option -> strategy of malformed values"
    out = {}
    for k, r in rules(with_options(world, preset(world, method))).items():
        if r.choices: out[k] = bad_word(r.choices)
        elif r.kind in (int, float): out[k] = bad_number(r.kind, r.low, r.high)
        elif r.kind is bool: out[k] = words
        elif r.kind is tuple: out[k] = bad_number(int, 1, 65536)
    out |= dict(seeds=bad_seeds, frames=bad_number(float, 1, 1e12),
                device=words.filter(lambda w: not re.fullmatch(r'cpu|cuda(:\d+)?', w)), method=bad_word(METHODS), preset=bad_word(PRESETS),
                threads=bad_number(int, 0, 4096), checkpoint_every=bad_number(int, 1, 10**12), keep_checkpoints=bad_number(int, 0, 10**6), compile=words,
                variant=words.filter(lambda w: not re.fullmatch(r'[\w.-]+', w) or '..' in w))
    return out

ONE = {(w, m): options(w, m) for w in ('gridworld', 'ant-dir') for m in METHODS if not m.endswith('oracle') and not refusal(w, m)}
cases = st.sampled_from([(*x, k) for x, o in ONE.items() for k in o]).flatmap(lambda c: st.tuples(st.just(c), ONE[c[:2]][c[2]]))

@many(160)
@given(case=cases)
def test_options_of_train(case, tmp_path_factory):
    (world, method, option), value = case
    d = tmp_path_factory.getbasetemp()/'options'
    d.mkdir(exist_ok=True)
    with contextlib.chdir(d), pytest.MonkeyPatch.context() as m:
        m.setattr(cli, 'new_run', lambda *a: pytest.fail(f'{option} {value!r} was taken'))
        argv = [] if option == 'method' else [f'--method={method}']
        code, out, err = ldm('train', world, *argv, f"--{option.replace('_', '-')}={value}")
    assert code == 2, (option, value, out, err)
    names(out + err, option, value if value.isascii() and value.strip() and "'" not in repr(value)[1:-1] else None)
    assert not list(d.iterdir())

RESUME = dict(seeds=bad_seeds, without=st.one_of(bad_seeds, st.sampled_from(['3', '5'])), frames=bad_number(float, 1, 1e12), threads=bad_number(int, 0, 4096),
    device=words.filter(lambda w: not re.fullmatch(r'cpu|cuda(:\d+)?', w)))

@many(80)
@given(case=st.sampled_from([*RESUME]).flatmap(lambda k: st.tuples(st.just(k), RESUME[k])))
def test_options_of_resume(case, run):
    "Of a run of seed 3; nothing of it is changed"
    option, value = case
    def contents(): return {p.name: p.read_bytes() for p in run.iterdir() if p.is_file() and p.name != 'lock'}
    before = contents()
    code, out, err = ldm('resume', str(run), f'--{option}={value}')
    assert code == 2, (option, value, out, err)
    names((out + err).replace(str(run), 'RUN'), option, value if value.isascii() and value.strip() and "'" not in repr(value)[1:-1] else None)
    assert contents() == before

@many(250)
@given(argv=st.lists(st.one_of(words, st.sampled_from(['train', 'gridworld', 'resume', 'check', 'evaluate', 'plot', 'record', 'list', '--seeds',
    '--method', 'rl2', '--out', '--frames', '--run', '--help', '--preset', 'quick', '--data', '--json', '--threads', '0'])), max_size=5))
def test_any_words(argv, tmp_path_factory):
    "Whatever is typed, in any order"
    d = tmp_path_factory.getbasetemp()/'words'
    d.mkdir(exist_ok=True)
    with contextlib.chdir(d), pytest.MonkeyPatch.context() as m:
        m.setattr(cli, 'new_run', lambda *a: contextlib.nullcontext()); m.setattr(cli, 'execute', lambda *a: 0)
        m.setattr(cli, 'locked', contextlib.nullcontext)
        if argv and argv[0] == 'bench': return
        code, out, err = ldm(*argv)
    assert code in (0, 2) and 'Traceback' not in out + err
    assert not list(d.iterdir())


# Values of a config

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('inputs')/'run'
    assert ldm('train', 'gridworld', '--method', 'rl2', '--seeds', '3', '--frames', '1920', '--out', str(folder))[0] == 0
    return folder

plain = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12)),
                     lambda x: st.one_of(st.lists(x, max_size=3), st.dictionaries(st.text(max_size=5), x, max_size=3)), max_leaves=6)

def wrong(kind, low=-math.inf, high=math.inf):
    "Not of this kind, or out of range"
    ok = {int: (int,), float: (int, float)}.get(kind, (kind,))
    return plain.filter(lambda x: type(x) not in ok or (kind in (int, float) and not low <= x <= high))

GAUGES = dict(world=plain.filter(lambda x: x not in list(WORLDS)), method=plain.filter(lambda x: x not in list(METHODS)),
    seeds=st.one_of(wrong(list), st.sampled_from([[], [3, 3], [-1], [True], [1.5], ['3'], [None], [2**31], [[3]]])), frames=wrong(int, 1, 10**13),
    threads=wrong(int, 1, 4096), checkpoint_every=wrong(int, 1, 10**12), keep_checkpoints=wrong(int, 0, 10**6), config=wrong(dict), compile=wrong(bool),
    preset=plain.filter(lambda x: x not in PRESETS), variant=plain.filter(lambda x: x is not None and not isinstance(x, str)),
    device=plain.filter(lambda x: not isinstance(x, str) or not re.fullmatch(r'cpu|cuda(:\d+)?', x)))
def wrong_setting(r):
    if r.choices: return plain.filter(lambda x: x not in r.choices)
    if r.kind is tuple: return st.one_of(wrong(list), st.sampled_from([[], [0], [1.5], ['a'], [True], [10**9], [[1]], [None]]))
    return wrong(r.kind, r.low, r.high)
SETTINGS = {k: wrong_setting(r) for k, r in rules(with_options('gridworld', preset('gridworld', 'rl2'))).items()}
entries = st.sampled_from([*GAUGES, *SETTINGS]).flatmap(lambda k: st.tuples(st.just(k), {**GAUGES, **SETTINGS}[k]))

def spoilt(run, text, command='resume'):
    "Status and message of a command that meets this config"
    path, whole = run/'config.json', (run/'config.json').read_bytes()
    before = {p.name for p in run.iterdir()} | {'lock'}
    path.write_text(text, encoding='utf-8')
    try: return ldm(command, str(run))
    finally:
        path.write_bytes(whole)
        assert {p.name for p in run.iterdir()} <= before

@many(250)
@given(entry=entries)
def test_entries_of_a_config(entry, run):
    k, v = entry
    info = read_config(run)
    (info['config'] if k in SETTINGS else info)[k] = v
    code, out, err = spoilt(run, json.dumps(info))
    assert code == 2, (k, v, out, err)
    names(err.replace(str(run), 'RUN'), k)
    assert re.search(r'allowed|did you mean|there are|choose|empty', err), err

@pytest.mark.parametrize('k', [k for k in GAUGES if k not in ('keep_checkpoints', 'compile', 'preset', 'variant')])
def test_missing_entries(k, run):
    info = read_config(run)
    del info[k]
    code, _, err = spoilt(run, json.dumps(info))
    assert code == 2 and f'{k} is missing: allowed is' in err

@many(250)
@given(at=st.floats(0, 1, exclude_max=True), junk=st.one_of(st.sampled_from(['', '"', '{', '}', ',', '[', ']', ':', '\n', 'NaN', '0', '-', 'é']), st.text(max_size=3)))
def test_damaged_configs(at, junk, run):
    "A few characters are others"
    text = (run/'config.json').read_text()
    i = int(at*len(text))
    text = (text[:i] + junk + text[i + max(1, len(junk)):]).encode('utf-8', 'replace').decode()
    code, out, err = spoilt(run, text, 'check')
    assert code in (0, 1, 2) and 'Traceback' not in out + err and len(err) < 800
