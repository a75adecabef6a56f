"""The page of a survey as a Jinja template."""

from fedpp.reporting.page import HEAD

TEMPLATE = (
    """\
{% macro count(number, thing) -%}{{ number }} {{ thing }}{{ "" if number == 1 else "s" }}{%- endmacro %}
{% macro file_rows(files) -%}
  {% for file in files %}
  <tr{% if file.outcome == "refused" %} class="refused"{% endif %}>
    <th scope="row" class="path">{{ file.path | path }}</th>
    <td>{{ file.outcome }}</td>
    <td class="number">{% if file.frames %}{{ file.frames }} &times; {{ file.width }} &times; {{ file.height }}
      {%- else %}&ndash;{% endif %}</td>
    <td class="remark">{{ file.reason or file.suspicion }}
      {%- if file.blank %}{{ "; " if file.suspicion }}{{ file.blank }} blank
      {%- endif %}</td></tr>
  {% endfor %}
{%- endmacro %}
{% macro file_head() -%}
  <thead><tr><th scope="col">File</th><th scope="col">Outcome</th>
    <th scope="col" class="number">Frames &times; width &times; height</th><th scope="col">Remark</th></tr></thead>
{%- endmacro %}
"""
    + HEAD
    + """\
<body>
<header>
  <p class="kicker">fedpp survey of raw data</p>
  <h1>{{ name }}</h1>
  <p class="secret"><strong>This page stays in the secret zone.</strong> It shows patients&rsquo; images and names
    their files. Do not mail it, print it, or put it where training code runs.</p>
  <p class="lead">{{ survey.recognised | sentence }}</p>
</header>
<main>
<section aria-labelledby="issues">
  <h2 id="issues">{% if survey.issues %}What to look into before anything is encrypted{% else %}No
    issues found{% endif %}</h2>
  {% if survey.issues %}
  <ul class="issues">
    {% for issue in survey.issues %}
    <li><span class="kind">{{ issue.kind | title_case }}</span>
      <p><strong>{{ issue.what }}.</strong> {{ issue.advice | sentence }}
        {% if issue.where %}<br><span class="note path">In {% for path in issue.where %}{{ path | path }}
        {{- ", " if not loop.last }}{% endfor %}</span>{% endif %}</p></li>
    {% endfor %}
  </ul>
  {% endif %}
  {% if survey.notes %}
  <h3 id="notes">To know</h3>
  <ul class="notes" aria-labelledby="notes">{% for note in survey.notes %}<li>{{ note | sentence }}</li>{% endfor %}
  </ul>
  {% endif %}
</section>

<section aria-labelledby="counts">
  <h2 id="counts">What there is</h2>
  <ul class="cards">
    {% for label, value in cards.items() %}
    <li><span class="label">{{ label }}</span><span class="value">{{ value }}</span></li>
    {% endfor %}
  </ul>
</section>

{% if survey.labels %}
<section aria-labelledby="labels">
  <h2 id="labels">Labels</h2>
  <div class="columns">
    <figure>{{ charts.labels }}</figure>
    <div class="scroll" role="region" aria-labelledby="labels" tabindex="0">
    <table>
      <thead><tr><th scope="col">Label</th><th scope="col" class="number">Sequences</th>
        <th scope="col" class="number">Share</th><th scope="col" class="number">Patients</th>
        {% if visits %}<th scope="col" class="number">Visits</th>{% endif %}</tr></thead>
      <tbody>
      {% for label in survey.labels[:most_labels] %}
      <tr><th scope="row">{{ label.label }}</th><td class="number">{{ label.sequences }}</td>
        <td class="number">{{ (100 * label.sequences / survey.sequences) | round | int }} %</td>
        <td class="number">{{ label.patients }}</td>
        {% if visits %}<td class="number">{{ label.visits }}</td>{% endif %}</tr>
      {% endfor %}
      {% if survey.labels | length > most_labels %}
      <tr><th scope="row">{{ survey.labels | length - most_labels }} more</th></tr>
      {% endif %}
      {% if survey.unlabelled or survey.unlabelled_visits %}
      <tr><th scope="row"><em>none</em></th><td class="number">{{ survey.unlabelled }}</td>
        <td class="number">{{ (100 * survey.unlabelled / survey.sequences) | round | int }} %</td>
        <td class="number">&ndash;</td>
        {% if visits %}<td class="number">{{ survey.unlabelled_visits }}</td>{% endif %}</tr>
      {% endif %}
      </tbody>
    </table>
    </div>
  </div>
</section>
{% endif %}

{% if survey.sequences %}
<section aria-labelledby="shape">
  <h2 id="shape">Lengths, sizes and time</h2>
  <div class="columns">
    {% for chart in (charts.lengths, charts.sizes, charts.gaps) if chart %}
    <figure>{{ chart }}</figure>
    {% endfor %}
    <dl class="pairs">
      {% for name, value in facts.items() %}
      <div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>
      {% endfor %}
    </dl>
  </div>
</section>

<section aria-labelledby="samples">
  <h2 id="samples">Some sequences</h2>
  <p class="note">First, middle and last frame of {{ count(survey.thumbnails | length, "sequence") }}, at least one of
    each label; each image from its own darkest to its own brightest pixel.</p>
  <ul class="samples">
    {% for sample in samples %}
    <li><figure>
      <div class="strip">
      {% for image in sample.images %}<img src="{{ image.uri }}" alt="{{ image.place }} frame" width="96"
        height="96">{% endfor %}
      </div>
      <figcaption>{% if sample.label is none %}<em>no label</em>{% else %}<b>{{ sample.label }}</b>{% endif %},
        {{ count(sample.frames, "frame") }}<br><span class="path">{{ sample.path | path }}</span></figcaption>
    </figure></li>
    {% endfor %}
  </ul>
</section>
{% endif %}

{% if survey.duplicates %}
<section aria-labelledby="duplicates">
  <h2 id="duplicates">Files that share images</h2>
  <p class="note">Equal: the same pixels. Nearly: after compression, another brightness or a little resizing, shown
    for different patients only.{% if survey.duplicates | length > most_pairs %} The first {{ most_pairs }} of
    {{ survey.duplicates | length }} pairs; all are in the output of <code>--json</code>.{% endif %}</p>
  <div class="scroll" role="region" aria-labelledby="duplicates" tabindex="0">
  <table>
    <thead><tr><th scope="col">One file</th><th scope="col">The other</th><th scope="col">Images</th>
      <th scope="col">Patients</th><th scope="col" class="number">Shared</th>
      <th scope="col" class="number">Correlation</th></tr></thead>
    <tbody>
    {% for pair in pairs[:most_pairs] %}
    <tr{% if not pair.one_patient %} class="refused"{% endif %}>
    <th scope="row" class="path">{{ pair.first | path }}</th>
      <td class="path">{{ pair.second | path }}</td><td>{{ "equal" if pair.same else "nearly" }}</td>
      <td>{{ "one" if pair.one_patient else "different" }}{{ "" if pair.one_split else ", and splits" }}</td>
      <td class="number">{{ pair.images }}</td><td class="number">{{ "%.4f" | format(pair.correlation) }}</td></tr>
    {% endfor %}
    </tbody>
  </table>
  </div>
</section>
{% endif %}

<section aria-labelledby="files">
  <h2 id="files">Files</h2>
  <p class="note">{{ survey.count("read") }} read, {{ survey.count("refused") }} refused,
    {{ survey.count("ignored") }} ignored.{% if survey.files | length > most_files %} The tables show
    {{ most_files }} at most; all are in the output of <code>--json</code>.{% endif %}</p>
  {% if remarked %}
  <div class="scroll" role="region" aria-label="Files with a remark" tabindex="0">
  <table>{{ file_head() }}
    <tbody>{{ file_rows(remarked[:most_files]) }}</tbody>
  </table>
  </div>
  {% endif %}
  {% if plain %}
  <details{% if not remarked %} open{% endif %}>
    <summary>{{ count(plain | length, "file") }} without a remark</summary>
    <div class="scroll" role="region" aria-label="Files without a remark" tabindex="0">
    <table>{{ file_head() }}
      <tbody>{{ file_rows(plain[:most_files]) }}</tbody>
    </table>
    </div>
  </details>
  {% endif %}
</section>
</main>
<footer>Made by <code>fedpp-site survey</code>. Issues come from tags, tables and pixels, not from a diagnosis; a
  survey without issues does not prove that there are none.</footer>
</body>
</html>
"""
)

STYLE = """\
.secret { max-width: 46rem; margin-block: 1rem 1.25rem; padding: .8rem 1rem; background: var(--panel);
  border: 1px solid var(--line); border-left: .3rem solid var(--warn); border-radius: .6rem; }
.secret strong { color: var(--warn); }
.lead, h1, .path, .issues, .notes { overflow-wrap: anywhere; }
.issues { margin: 0; padding: 0; list-style: none; }
.issues li { display: grid; grid-template-columns: 13rem 1fr; gap: .25rem 1.5rem; padding: .7rem 0;
  border-bottom: 1px solid var(--line); }
.issues p { margin: 0; }
.issues .kind { color: var(--warn); font-weight: 600; }
#notes { margin-top: 1.5rem; }
.notes { margin: 0; padding-left: 1.1rem; color: var(--soft); }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: 1.25rem;
  margin: 0; padding: 0; list-style: none; }
.strip { display: flex; gap: 3px; }
.strip img { width: 96px; height: 96px; object-fit: contain; background: #000; }
.samples figcaption { margin-top: .3rem; overflow-wrap: anywhere; font-size: .85rem; }
.samples b { color: var(--ink); }
.remark { min-width: 16rem; }
td.path, th.path { min-width: 12rem; max-width: 28rem; font-size: .9rem; }
@media (max-width: 40rem) { .issues li { grid-template-columns: 1fr; } }
"""
