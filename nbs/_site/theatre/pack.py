"Networks of `data/weights` for the belief theatre: one seed, only what acts and believes, as base64 in half precision"
import base64, json, struct
from pathlib import Path

SHOWN = {  # name of the file -> what the theatre calls it, in its order
    'gridworld-ldm-one-goal': 'LDM, one goal (ours)', 'gridworld-ldm': 'LDM', 'gridworld-rl2-full': 'RL²'}


def read(path):
    "Tensors of a safetensors file, name -> (shape, bytes in half precision), and the text about them"
    raw = Path(path).read_bytes()
    size = struct.unpack('<Q', raw[:8])[0]
    head = json.loads(raw[8:8 + size])
    about = json.loads(head.pop('__metadata__')['about'])
    return {k: (v['shape'], raw[8 + size:][slice(*v['data_offsets'])]) for k, v in head.items() if v['dtype'] == 'F16'}, about

def pack(path, seed=0):
    "The networks of one seed of a file; `seed` is its place in the file"
    tensors, about = read(path)
    if any(k.startswith('mean.') for k in tensors):  # the running average acts; it takes the place of what is trained
        tensors = {k.removeprefix('mean.'): v for k, v in tensors.items() if k.startswith(('mean.', 'vae.'))}
    at, data = {}, b''
    for k, ((S, rows, columns), blob) in tensors.items():
        if 'critic' in k or 'value' in k: continue
        at[k], each = [len(data), rows, columns], len(blob)//S
        data += blob[seed*each:(seed + 1)*each]
    config = about['config']
    return dict(at=at, data=base64.b64encode(data).decode(), seed=about['seeds'][seed], frames=about['frames'], dropout=config.get('p_drop'))

def networks(folder):
    "All networks of the theatre that the folder has: name -> the network of its first seed"
    found = {}
    for stem, name in SHOWN.items():
        path = Path(folder)/f'{stem}.safetensors'
        if path.exists(): found[name] = pack(path)
    return found
