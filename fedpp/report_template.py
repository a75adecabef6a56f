"""The page of a report as a Jinja template: one file, no script, nothing fetched from anywhere."""

TEMPLATE = """\
{% macro figures(values, names) -%}
  {% for name in names %}<td class="number">{{ values[name] | figure }}</td>{% endfor %}
{%- endmacro %}
{% set names = ["auc", "sensitivity", "specificity", "precision", "f1", "accuracy"] -%}
{% set headings = {"auc": "AUC", "sensitivity": "Sensitivity", "specificity": "Specificity",
                   "precision": "Precision", "f1": "F1", "accuracy": "Accuracy"} -%}
{% set negative = confusion.classes[0] -%}
{% set splits = ["train", "validation", "test"] -%}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'">
<title>fedpp report: {{ scenario }}</title>
<style>
{{ style }}
</style>
</head>
<body>
<header>
  <p class="kicker">fedpp report, {{ "simulated" if mode == "simulation" else "deployed" }} federation</p>
  <h1>{{ scenario }}</h1>
  <p class="lead">{{ sites | length }} hospital{{ "" if sites | length == 1 else "s" }} trained one model
    together on encrypted images, in {{ rounds | length }} round{{ "" if rounds | length == 1 else "s" }}.
    {{ data }}</p>
  <dl class="facts">
    <div><dt>Scheme</dt><dd>{{ scheme }}, n = {{ n }}</dd></div>
    <div><dt>Arithmetic</dt><dd>{{ dtype }}</dd></div>
    <div><dt>Seed</dt><dd>{{ seed }}</dd></div>
    {% for name, value in settings.items() %}
    <div><dt>{{ name | words }}</dt><dd>{{ value }}</dd></div>
    {% endfor %}
  </dl>
</header>
<main>
<section aria-labelledby="result">
  <h2 id="result">Result on the test patients</h2>
  <p class="note">The final model on {{ tested }} test sequence{{ "" if tested == 1 else "s" }} of all
    hospitals together, of patients that each hospital held out. Positive means: not
    &ldquo;{{ negative }}&rdquo;.</p>
  <ul class="cards">
    {% for card in cards %}
    <li{% if loop.first %} class="first"{% endif %}>
      <span class="label">{{ card.label }}</span>
      <span class="value">{{ card.value | figure }}</span>
      <span class="detail">{{ card.detail }}</span>
    </li>
    {% endfor %}
  </ul>
</section>

<section class="protection" aria-labelledby="protection">
  <h2 id="protection">What this protects, and what it does not</h2>
  <div class="columns">
    <div>
      <h3>Kept apart</h3>
      <ul>{% for line in privacy.protects %}<li>{{ line }}</li>{% endfor %}</ul>
    </div>
    <div>
      <h3>Not protected</h3>
      <ul>
        {% for line in privacy.does_not_protect %}<li>{{ line }}</li>{% endfor %}
        {% if mode == "simulation" %}
        <li>All hospitals of this run were simulated on one computer: it shows the method, not the isolation
          of a deployment.</li>
        {% endif %}
      </ul>
    </div>
  </div>
</section>

<section aria-labelledby="training">
  <h2 id="training">Training</h2>
  {% if rounds %}
  <div class="columns">
    <figure>{{ loss_chart }}<figcaption>Mean cross entropy on the validation patients of all hospitals;
      lower is better.</figcaption></figure>
    <figure>{{ quality_chart }}<figcaption>Quality on the same validation patients; higher is
      better.</figcaption></figure>
  </div>
  <details>
    <summary>All rounds as a table</summary>
    <div class="scroll" role="region" aria-label="All rounds" tabindex="0">
    <table>
      <thead><tr><th scope="col" class="number">Round</th><th scope="col" class="number">Hospitals</th>
        <th scope="col" class="number">Loss</th>
        {% for name in names %}<th scope="col" class="number">{{ headings[name] }}</th>{% endfor %}
        <th scope="col" class="number">Time</th></tr></thead>
      <tbody>
      {% for row in rounds %}
      <tr><th scope="row" class="number">{{ row.round }}</th><td class="number">{{ row.sites | length }}</td>
        <td class="number">{{ row.val_loss | figure }}</td>{{ figures(row, names) }}
        <td class="number">{{ row.seconds | duration }}</td></tr>
      {% endfor %}
      </tbody>
    </table>
    </div>
  </details>
  {% else %}
  <p>No round was completed.</p>
  {% endif %}
</section>

<section class="columns" aria-label="Decisions and parity">
<div>
  <h2 id="decisions">Decisions on the test patients</h2>
  <p class="note" id="matrix">Confusion matrix: true classes in rows, predicted ones in columns, and each
    cell's share of its row.</p>
  <div class="scroll" role="region" aria-label="Confusion matrix" tabindex="0">
  <table class="confusion" aria-describedby="matrix">
    <thead><tr><td></td>
      {% for name in confusion.classes %}<th scope="col">predicted<br>{{ name }}</th>{% endfor %}</tr></thead>
    <tbody>
    {% for row in confusion.matrix %}
    {% set total = row | sum %}
    <tr><th scope="row">true<br>{{ confusion.classes[loop.index0] }}</th>
      {% for cell in row %}
      {% set share = (100 * cell / total) | round | int if total else 0 %}
      <td style="--share: {{ share / 2 }}%">
        <b>{{ cell }}</b><span>{{ share }} %</span></td>
      {% endfor %}
    </tr>
    {% endfor %}
    </tbody>
  </table>
  </div>
</div>
{% if parity %}
<div>
  <h2 id="parity">Does encryption change the model?</h2>
  <p class="note">The federation on ciphertext against its plaintext twin, which has the same initial weights,
    batches and optimizer arithmetic.</p>
  <dl class="pairs">
    <div><dt>Largest difference of a predicted probability</dt>
      <dd>{{ parity.max_abs_probability_difference | scientific }}</dd></div>
    {% if parity.max_abs_weight_difference is not none %}
    <div><dt>Largest difference of a weight</dt>
      <dd>{{ parity.max_abs_weight_difference | scientific }}</dd></div>
    {% endif %}
    {% if parity.control_probability_differences %}
    <div><dt>The twin against itself, initial weights moved by one unit in the last place
      ({{ parity.control_probability_differences | length }} draws, largest)</dt>
      <dd>{{ control | scientific }}</dd></div>
    <div><dt>Verdict</dt><dd>{{ "within what rounding alone does" if within_control
      else "more than rounding alone does" }}</dd></div>
    {% endif %}
  </dl>
</div>
{% endif %}
</section>

<section aria-labelledby="hospitals">
  <h2 id="hospitals">Hospitals</h2>
  <p class="note">Sequences in each split, and the final model on each hospital's own test patients. A dash
    means that a figure is not defined there, for instance an AUC without positive sequences.
    {% if shared_patients and shared_patients.patients %}
    {{ shared_patients.patients }} patient{{ " is" if shared_patients.patients == 1 else "s are" }} known to more
    than one hospital, as equal pseudonyms tell, and count{{ "s" if shared_patients.patients == 1 }} once at each.
    {% if shared_patients.trained_and_tested %}
    {{ shared_patients.trained_and_tested }} of them {{ "is" if shared_patients.trained_and_tested == 1 else "are" }}
    in training at one hospital and in test at another: on them the test of a model that saw both hospitals is no
    fair one.
    {% else %}
    None of them is in training at one hospital and in test at another.
    {% endif %}
    {% endif %}</p>
  <div class="scroll" role="region" aria-label="Hospitals" tabindex="0">
  <table>
    <thead><tr><th scope="col">Hospital</th><th scope="col" class="number">Patients</th>
      {% for split in splits %}<th scope="col" class="number">{{ split | words }}</th>{% endfor %}
      {% for name in names %}<th scope="col" class="number">{{ headings[name] }}</th>{% endfor %}</tr></thead>
    <tbody>
    {% for site in sites %}
    <tr><th scope="row">{{ site.name }}</th>
      <td class="number">{{ "&ndash;" | safe if site.patients is none else site.patients }}</td>
      {% for split in splits %}<td class="number">{{ site.sequences.get(split, 0) }}</td>{% endfor %}
      {% if site.test %}{{ figures(site.test, names) }}{% else %}
      {% for name in names %}<td class="number">&ndash;</td>{% endfor %}{% endif %}</tr>
    {% endfor %}
    {% for site in refused %}
    <tr class="refused"><th scope="row">{{ site.name }}</th>
      <td colspan="{{ 4 + names | length }}"><b>Refused:</b> {{ site.reason }}</td></tr>
    {% endfor %}
    </tbody>
    {% if sites | length > 1 %}
    <tfoot><tr><th scope="row">All admitted</th>
      <td class="number">{{ "&ndash;" | safe if patients is none else patients }}</td>
      {% for split in splits %}<td class="number">{{ totals[split] }}</td>{% endfor %}
      {{ figures(final, names) }}</tr></tfoot>
    {% endif %}
  </table>
  </div>
</section>

{% if baselines %}
<section aria-labelledby="baselines">
  <h2 id="baselines">Beside other ways to train</h2>
  <p class="note">The same task on all hospitals' test patients. Plaintext means without any encryption. Every
    training starts from the same weights and takes the same rounds, local epochs, batch size and learning rate; so
    a model of all data in one place takes as many steps a round as all hospitals together.
    {% if shared_patients and shared_patients.central_left_out %}
    {{ shared_patients.central_left_out }} training
    sequence{{ "" if shared_patients.central_left_out == 1 else "s" }} of patients whom another hospital tests
    {{ "was" if shared_patients.central_left_out == 1 else "were" }} left out of it.
    {% endif %}</p>
  <div class="scroll" role="region" aria-label="Baselines" tabindex="0">
  <table>
    <thead><tr><th scope="col">Training</th><th scope="col" class="number">Loss</th>
      {% for name in names %}<th scope="col" class="number">{{ headings[name] }}</th>{% endfor %}</tr></thead>
    <tbody>
    {% for row in compared %}
    <tr{% if loop.first %} class="ours"{% endif %}><th scope="row">{{ row.label }}</th>
      <td class="number">{{ row.figures.loss | figure }}</td>{{ figures(row.figures, names) }}</tr>
    {% endfor %}
    </tbody>
  </table>
  </div>
  {% if joined %}
  <h3 id="joined">What a hospital gains by joining: AUC on its own test patients</h3>
  <div class="scroll" role="region" aria-labelledby="joined" tabindex="0">
  <table class="narrow">
    <thead><tr><th scope="col">Hospital</th><th scope="col" class="number">Alone, plaintext</th>
      <th scope="col" class="number">Federated on ciphertext</th></tr></thead>
    <tbody>
    {% for row in joined %}
    <tr><th scope="row">{{ row.label }}</th><td class="number">{{ row.alone | figure }}</td>
      <td class="number">{{ row.federated | figure }}</td></tr>
    {% endfor %}
    </tbody>
  </table>
  </div>
  {% endif %}
</section>
{% endif %}

<section class="columns" aria-label="Timing and versions">
  <div>
    <h2>Time</h2>
    <dl class="pairs">
      {% for name, seconds in timing.items() %}
      <div><dt>{{ name | words }}</dt><dd>{{ seconds | duration }}</dd></div>
      {% else %}<div><dt>Not measured</dt><dd>&ndash;</dd></div>{% endfor %}
    </dl>
  </div>
  <div>
    <h2>Versions</h2>
    <dl class="pairs">
      {% for name, version in versions.items() %}
      <div><dt>{{ name }}</dt><dd>{{ version }}</dd></div>
      {% else %}<div><dt>Not recorded</dt><dd>&ndash;</dd></div>{% endfor %}
    </dl>
  </div>
</section>
</main>
<footer>Every figure of this page stands in <code>report.json</code> beside it. For research; not a medical
  device.</footer>
</body>
</html>
"""

STYLE = """\
:root {
  --paper: #ffffff; --panel: #f5f7f9; --ink: #18222d; --soft: #566473; --line: #d8dee5;
  --accent: #0b6a88; --second: #b4500b; --third: #5a4fb0; --fourth: #3d7d31; --warn: #a3321f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #12181f; --panel: #1a222b; --ink: #e6ebf0; --soft: #9dabb9; --line: #313c48;
    --accent: #57bcd9; --second: #f0a05f; --third: #a9a1f2; --fourth: #8bcb7a; --warn: #f29181;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 71rem; padding: 2.5rem clamp(1rem, 4vw, 3rem) 3rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
h1 { margin: 0 0 .5rem; font-size: clamp(1.7rem, 4vw, 2.4rem); line-height: 1.15; letter-spacing: -.015em; }
h2 { margin: 0 0 .5rem; font-size: 1.3rem; line-height: 1.25; letter-spacing: -.01em; }
h3 { margin: 0 0 .4rem; font-size: 1rem; }
p { margin: 0 0 1rem; }
section { margin-top: 2.75rem; }
.kicker { margin: 0 0 .35rem; color: var(--accent); font-weight: 600; font-size: .9rem; }
.lead { max-width: 46rem; font-size: 1.15rem; }
.note, figcaption, footer { color: var(--soft); font-size: .92rem; }
.note { max-width: 46rem; }
.facts { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: 1.25rem 0 0; padding: .9rem 0;
  border-block: 1px solid var(--line); }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; font-variant-numeric: tabular-nums; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.2rem, 1fr)); gap: 1px; margin: 0;
  padding: 1px; list-style: none; background: var(--line); border-radius: .6rem; overflow: hidden; }
.cards li { display: flex; flex-direction: column; padding: 1rem 1.1rem; background: var(--panel); }
.cards .label { color: var(--soft); font-size: .9rem; }
.cards .value { font-size: 1.9rem; font-weight: 650; line-height: 1.25; font-variant-numeric: tabular-nums; }
.cards .first .value { color: var(--accent); }
.cards .detail { color: var(--soft); font-size: .85rem; }
.protection { padding: 1.4rem 1.5rem; background: var(--panel); border: 1px solid var(--line);
  border-left: .3rem solid var(--warn); border-radius: .6rem; }
.protection ul { margin: 0; padding-left: 1.1rem; }
.protection li { margin-bottom: .5rem; font-size: .95rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
  gap: 1.5rem 3rem; }
.protection .columns { margin-top: .9rem; }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; }
figure svg text { font-family: inherit !important; }
details { margin-top: 1rem; }
summary { cursor: pointer; color: var(--accent); }
.scroll { overflow-x: auto; margin-top: .5rem; }
table { width: 100%; border-collapse: collapse; font-size: .95rem; }
th, td { padding: .5rem .75rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th:first-child { padding-left: 0; }
thead th { color: var(--soft); font-size: .85rem; font-weight: 600; vertical-align: bottom; }
tbody th { min-width: 7.5rem; font-weight: 500; }
tbody th.number { min-width: 0; }
tfoot th, tfoot td, .ours th, .ours td { font-weight: 650; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.refused td, .refused th { color: var(--warn); }
.narrow { width: auto; }
#joined { margin-top: 1.75rem; }
.confusion { width: auto; }
.confusion thead th { text-align: center; }
.confusion th, .confusion td { min-width: 0; border: 0; }
.confusion td[style] { min-width: 8rem; padding: 1.1rem .75rem; border: 2px solid var(--paper);
  text-align: center;
  background: color-mix(in srgb, var(--accent) var(--share), var(--panel)); }
.confusion td b { display: block; font-size: 1.4rem; line-height: 1.2; }
.confusion td span { font-size: .85rem; }
.pairs { margin: 0; }
.pairs div { display: flex; justify-content: space-between; gap: 1.5rem; padding: .45rem 0;
  border-bottom: 1px solid var(--line); }
.pairs dt { font-size: .95rem; }
.pairs dd { text-align: right; }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
@media print { body { padding: 0; } section { break-inside: avoid; } details { display: none; } }
"""
