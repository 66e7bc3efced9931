"Sphinx settings; facts come from settings.ini"
from configparser import ConfigParser
from pathlib import Path

cp = ConfigParser(); cp.read(Path(__file__).parents[2]/'settings.ini', encoding='utf-8')
c = cp['DEFAULT']
project, author, release, copyright = c['title'], c['author'], c['version'], c['copyright']
extensions = ['myst_nb', 'sphinx_copybutton']
nb_execution_mode = 'off'              # outputs are the ones saved in the pages
nb_merge_streams = True
nb_render_markdown_format = 'myst'     # tables in Markdown outputs too
myst_enable_extensions = ['dollarmath', 'amsmath', 'colon_fence', 'deflist', 'linkify', 'strikethrough', 'tasklist']
myst_dmath_double_inline = True        # $$ within a paragraph is display math, as in Jupyter
myst_heading_anchors = 3
suppress_warnings = ['mystnb.unknown_mime_type', 'myst.header']
html_theme = 'furo'
html_title = c['lib_path']
html_static_path = ['static']
html_css_files = ['site.css']
html_copy_source = html_show_sourcelink = html_use_index = False
pygments_style, pygments_dark_style = 'friendly', 'github-dark'
mathjax_path = 'mathjax.js'            # MathJax 3.2.2, vendored: the site needs no network
html_favicon = 'static/favicon.svg'
myst_html_meta = {'property=og:title': c['lib_name'], 'property=og:description': c['description'],
                  'property=og:image': f"{c['doc_host']}{c['doc_baseurl']}/_static/card.png", 'property=og:type': 'website'}
