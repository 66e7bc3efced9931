# Reads every package fact from settings.ini (the nbdev 2 convention)
from configparser import ConfigParser
from pathlib import Path
from shutil import copy
from setuptools import setup, find_packages
from setuptools.command.build_py import build_py

here = Path(__file__).parent
cp = ConfigParser(delimiters=['=']); cp.read(here/'settings.ini', encoding='utf-8')
c = cp['DEFAULT']
def words(k): return c.get(k, '').split()
lic = dict(apache2='Apache-2.0', mit='MIT', gpl3='GPL-3.0-only', bsd3='BSD-3-Clause')
status = {'1': '1 - Planning', '2': '2 - Pre-Alpha', '3': '3 - Alpha', '4': '4 - Beta', '5': '5 - Production/Stable'}

class Build(build_py):
    "Copies trained networks and belief theatre into the package of a wheel; an editable install finds them in the clone"
    def run(self):
        super().run()
        if self.editable_mode: return
        for name, there, kinds in (('weights', 'data/weights', ['safetensors']), ('theatre', 'nbs/_site/theatre', ['js', 'css'])):
            to = Path(self.build_lib)/c['lib_path']/name
            to.mkdir(parents=True, exist_ok=True)
            for f in sorted(f for k in kinds for f in (here/there).glob(f'*.{k}')):
                if '-p_drop-' not in f.name: copy(f, to) # an ablation's networks are for its pages only

setup(
    cmdclass=dict(build_py=Build),
    name=c['lib_name'], version=c['version'], description=c['description'], keywords=words('keywords'),
    author=c['author'], author_email=c['author_email'], url=c['git_url'], license=lic[c['license']],
    classifiers=['Programming Language :: Python :: 3', 'Natural Language :: '+c['language'],
                 'Development Status :: '+status[c['status']], 'Intended Audience :: '+c['audience']],
    packages=find_packages(include=[c['lib_path'], c['lib_path']+'.*']), include_package_data=True,
    python_requires='>='+c['min_python'], install_requires=words('requirements'),
    extras_require={k: words(k+'_requirements') for k in ('dev', 'tensorboard', 'trackio', 'cluster')},
    long_description=(here/'README.md').read_text(encoding='utf-8') if (here/'README.md').exists() else '',
    long_description_content_type='text/markdown', zip_safe=False,
    entry_points=dict(console_scripts=words('console_scripts'), nbdev=[f"{c['lib_path']}={c['lib_path']}._modidx:d"]),
)
