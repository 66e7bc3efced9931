#!/usr/bin/env python
"""Do the numbers stand still? `python tests/bits.py [METHOD...]` compares this tree with an older commit, bit for bit.

It unpacks the commit beside the tree, trains every method with both for 12 iterations of two seeds on the gridworld and the
half cheetah, on this machine, on one thread, and compares every tensor of the last checkpoints and every metric. It ends
with status 1 where one bit differs. Bits depend on the processor, so nothing is stored. Some minutes; `--iterations 3` is a
quick look.
"""
import argparse, io, json, os, subprocess, sys, tarfile, tempfile
from pathlib import Path

import torch
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[1]
BASE = '8aaa3ce'  # what the numbers were before the house was rebuilt
SMALL = '--workers 4 --minibatches 2'  # of robots, whose updates are large; the code that runs is the same
VAE = '--vae-batch 4 --buffer-size 20'
SOME = '--posteriors 8 --transitions 8'  # another way through the decoder: some pairs instead of all
RUNS = {  # world -> row -> method and options; a row for each way that numbers can take
    'gridworld': {'rl2': '', 'varibad': '', 'ldm': '', 'mixreg': '', 'rl2-oracle': '', 'varibad-oracle': '',
                  'ldm of the release': '--preset release', 'ldm with one goal': '--preset one-goal', 'ldm with some pairs': SOME},
    'cheetah-vel': {'rl2': SMALL, 'varibad': f'{SMALL} {VAE} {SOME}', 'ldm': f'{SMALL} {VAE} --mixture-workers 1', 'mixreg': SMALL,
                    'rl2-oracle': SMALL, 'varibad-oracle': f'{SMALL} {VAE}'}}
NEW = {('gridworld', m): ['--encoder-clip', 'sum'] for m in ('varibad', 'varibad-oracle')}  # what the base did, which is no longer the default
METHODS = list(dict.fromkeys(row.split()[0] for rows in RUNS.values() for row in rows))  # those that the base has
FRAMES = {'gridworld': 16*120, 'cheetah-vel': 4*200}  # of an iteration


def unpack(commit, to):
    "The files of a commit"
    tar = subprocess.run(['git', 'archive', commit], cwd=ROOT, capture_output=True)
    if tar.returncode: sys.exit(f'{commit} is not in this clone ({tar.stderr.decode().strip()}); fetch it: git fetch --unshallow')
    tarfile.open(fileobj=io.BytesIO(tar.stdout)).extractall(to, filter='data')

def train(tree, world, row, iterations, out):
    "A short run with the package of `tree`; its error text, empty if it is well"
    argv = ['train', world, '--method', row.split()[0], '--seeds', '0:2', '--frames', str(iterations*FRAMES[world]), '--threads', '1',
            '--out', str(out), *RUNS[world][row].split(), *(NEW.get((world, row), []) if tree == ROOT else [])]
    cli = 'ldm_nb.lab.cli' if (tree/'ldm_nb/lab').exists() else 'ldm_nb.cli'
    r = subprocess.run([sys.executable, '-c', f'from {cli} import main; main()', *argv], cwd=tree, capture_output=True, encoding='utf-8',
                       env=os.environ | dict(PYTHONPATH=str(tree), OMP_NUM_THREADS='1', PYTHONUTF8='1'))
    return '' if r.returncode == 0 else r.stderr[-2000:] or f'status {r.returncode}'

NAMES = {'params.seen.': 'stats.seen.', 'opt.reward.': 'stats.reward.', 'opt.carried.tasks': 'stats.tasks', 'opt.carried.': 'workers.'}

def today(name):
    "The name that a tensor of an older checkpoint has today"
    return next((new + name[len(old):] for old, new in NAMES.items() if name.startswith(old)), name)

def tensors(run):
    "Every tensor of the last checkpoint, one after the other: seed and name -> tensor"
    last = max(run.glob('checkpoint-*'), key=lambda p: int(p.name.split('-')[1]))
    out = {}
    for f in sorted(last.glob('seed-*')):
        with safe_open(f, 'pt') as x: out |= {(f.stem, today(k)): x.get_tensor(k) for k in x.keys()}
    return last.name, out

def same(a, b):
    "What differs between two runs, nothing where all bits are equal; how many tensors there are"
    (at, x), (bt, y) = tensors(a), tensors(b)
    if at != bt: return [f'{at} against {bt}'], 0
    if not x or x.keys() != y.keys(): return [f'tensors {sorted(map(str, x.keys() ^ y.keys()))[:4]}'], 0
    bad = [' '.join(k) for k in x if x[k].dtype != y[k].dtype or not torch.equal(x[k].view(torch.uint8), y[k].view(torch.uint8))]
    lines = [[json.loads(l) for l in (r/'metrics.jsonl').read_text().splitlines()] for r in (a, b)]
    return bad + ['metrics']*(lines[0] != lines[1]), len(x)

def main():
    ap = argparse.ArgumentParser(description='Compare the numbers of this tree with those of an older commit, bit for bit.')
    ap.add_argument('methods', nargs='*', metavar='METHOD', help=f'default: {" ".join(METHODS)}')
    ap.add_argument('--base', default=BASE, help=f'the older commit (default: {BASE})')
    ap.add_argument('--iterations', type=int, default=12)
    ap.add_argument('--worlds', nargs='*', choices=FRAMES, default=list(FRAMES))
    args, moved = ap.parse_args(), False
    if no := set(args.methods) - {*METHODS}: ap.error(f'no method {min(no)}; there are {", ".join(METHODS)}')
    with tempfile.TemporaryDirectory() as d:
        old, d = Path(d)/'old', Path(d)
        unpack(args.base, old)
        for world in args.worlds:
            for row in RUNS[world]:
                if args.methods and row.split()[0] not in args.methods: continue
                runs = d/f'{world}-{row}-old', d/f'{world}-{row}-new'
                bad = [f'{tree.name}: {said}' for tree, run in zip((old, ROOT), runs) if (said := train(tree, world, row, args.iterations, run))]
                bad, n = (bad, 0) if bad else same(*runs)
                moved |= bool(bad)
                print(f'{world:12} {row:20}', f'{n} tensors equal' if not bad else 'DIFFERS: ' + ', '.join(bad[:4]), flush=True)
    sys.exit(moved)


if __name__ == '__main__': main()
