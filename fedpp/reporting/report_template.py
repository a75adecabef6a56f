"""The page of a report as a Jinja template."""

from fedpp.reporting.page import HEAD

TEMPLATE = (
    """\
{% macro figures(values, names) -%}
  {% for name in names %}<td class="number">{{ values[name] | figure }}</td>{% endfor %}
{%- endmacro %}
{% set names = ["auc", "sensitivity", "specificity", "precision", "f1", "accuracy"] -%}
{% set decided = ["sensitivity", "missed_diagnosis_rate", "specificity", "precision", "f1", "accuracy"] -%}
{% set headings = {"auc": "AUC", "sensitivity": "Sensitivity", "specificity": "Specificity",
                   "missed_diagnosis_rate": "Missed",
                   "precision": "Precision", "f1": "F1", "accuracy": "Accuracy"} -%}
{% set negative = confusion.classes[0] if confusion else "" -%}
{% set splits = ["train", "validation", "test"] -%}
"""
    + HEAD
    + """\
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
    {% if mode == "simulation" %}
    {% for name, value in settings.items() %}
    <div><dt>{{ name | words }}</dt><dd>{{ value | value }}</dd></div>
    {% endfor %}
    {% endif %}
  </dl>
  {% if mode == "deployment" and settings %}
  <details>
    <summary>All settings of the run</summary>
    <dl class="pairs settings">
    {% for name, value in settings.items() %}
    <div><dt>{{ name }}</dt><dd>{{ value | value }}</dd></div>
    {% endfor %}
    </dl>
  </details>
  {% endif %}
</header>
<main>
<section aria-labelledby="result">
  <h2 id="result">Result on the test patients</h2>
  <p class="note">The final model on {{ tested }} test sequence{{ "" if tested == 1 else "s" }} of all
    hospitals together, of patients that each hospital held out.
    {% if confusion %}
    Positive means: not &ldquo;{{ negative }}&rdquo;.
    {% else %}
    Each of {{ findings | length }} findings is asked about by itself, on the sequences where it is known; figures are
    means over the findings.
    {% endif %}</p>
  <ul class="cards">
    {% for card in cards %}
    <li{% if loop.first %} class="first"{% endif %}>
      <span class="label">{{ card.label }}</span>
      <span class="value">{{ card.value | figure }}</span>
      <span class="detail">{{ card.detail }}</span>
    </li>
    {% endfor %}
  </ul>
  {% if losing %}
  <p class="alarm"><b>&#9660; Worse than alone:</b> {{ losing | join(", ") }}. On
    {{ "its" if losing | length == 1 else "their" }} own test patients
    {{ "this hospital&rsquo;s own model is" | safe if losing | length == 1
       else "these hospitals&rsquo; own models are" | safe }} better than the federation&rsquo;s:
    <a href="#gains">hospital by hospital</a>.</p>
  {% endif %}
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
    {% if site_loss_chart %}
    <figure>{{ site_loss_chart }}<figcaption>The same on each hospital's own validation
      patients.</figcaption></figure>
    <figure>{{ site_auc_chart }}<figcaption>A gap means that a hospital told no figure of that round, or that none is
      defined there.</figcaption></figure>
    {% endif %}
  </div>
  {% if site_loss_chart %}
  <ul class="legend" aria-label="Curves of the hospitals">
    {% for curve in legend %}
    <li><span class="curve" style="color: {{ curve.colour }}; border-bottom-style: {{ curve.dashes }}"
      aria-hidden="true">{{ curve.marker }}</span> {{ curve.label }}</li>
    {% endfor %}
  </ul>
  {% endif %}
  {% if left_out %}
  <h3 id="left-out">Who was left out of a round</h3>
  <div class="scroll" role="region" aria-labelledby="left-out" tabindex="0">
  <table>
    <thead><tr><th scope="col">Hospital</th><th scope="col">Rounds</th><th scope="col">Why</th></tr></thead>
    <tbody>
    {% for row in left_out %}
    <tr><th scope="row">{{ row.site }}</th><td>{{ row.rounds }}</td><td>{{ row.reason }}</td></tr>
    {% endfor %}
    </tbody>
  </table>
  </div>
  {% endif %}
  {% if repeated %}
  <p class="note">Rounds that were repeated until the hospitals adopted a model:
    {% for row in repeated %}{{ row.round }} (attempt {{ row.attempt }}){{ "." if loop.last else ", " }}{% endfor %}</p>
  {% endif %}
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
  {% if site_loss_chart %}
  <details>
    <summary>Each hospital in each round as a table</summary>
    <div class="scroll" role="region" aria-label="Each hospital in each round" tabindex="0">
    <table>
      <thead><tr><th scope="col" class="number">Round</th><th scope="col">Hospital</th>
        <th scope="col" class="number">Loss</th>
        {% for name in names %}<th scope="col" class="number">{{ headings[name] }}</th>{% endfor %}</tr></thead>
      <tbody>
      {% for row in rounds %}
      {% for site, told in row.by_site.items() %}
      <tr><td class="number">{{ row.round }}</td><th scope="row">{{ site }}</th>
        <td class="number">{{ told.loss | figure }}</td>{{ figures(told, names) }}</tr>
      {% endfor %}
      {% endfor %}
      </tbody>
    </table>
    </div>
  </details>
  {% endif %}
  {% else %}
  <p>No round was completed.</p>
  {% endif %}
</section>

<section{% if confusion and parity %} class="columns"{% endif %} aria-label="Decisions{{ " and parity" if parity }}">
<div>
  <h2 id="decisions">Decisions on the test patients</h2>
  {% if confusion %}
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
  {% else %}
  <p class="note">Each finding on the test sequences where it is known. A dash means that a figure is not defined
    there.</p>
  <div class="scroll" role="region" aria-label="Findings" tabindex="0">
  <table>
    <thead><tr><th scope="col">Finding</th><th scope="col" class="number">Known</th>
      <th scope="col" class="number">Present</th>
      {% for name in names %}<th scope="col" class="number">{{ headings[name] }}</th>{% endfor %}</tr></thead>
    <tbody>
    {% for name, finding in findings.items() %}
    <tr><th scope="row">{{ name }}</th><td class="number">{{ finding.known }}</td>
      <td class="number">{{ finding.present }}</td>{{ figures(finding, names) }}</tr>
    {% endfor %}
    </tbody>
  </table>
  </div>
  {% endif %}
</div>
{% if parity %}
<div{% if not confusion %} class="below"{% endif %}>
  <h2 id="parity">Does encryption change the model?</h2>
  <p class="note">The federation on ciphertext against its plaintext reference, which has the same initial weights,
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

{% if points %}
<section aria-labelledby="point">
  <h2 id="point">Where a diagnosis must not be missed</h2>
  <p class="note">A threshold in place of one half: the highest that reaches a sensitivity of
    {{ points[0].wanted }} on all hospitals&rsquo; validation patients, judged on the test patients.</p>
  <div class="scroll" role="region" aria-labelledby="point" tabindex="0">
  <table>
    <thead><tr><th scope="col">{{ "Finding" if findings else "Of" }}</th>
      <th scope="col" class="number">Threshold</th>
      {% for name in decided %}<th scope="col" class="number">{{ headings[name] }}</th>{% endfor %}</tr></thead>
    <tbody>
    {% for point in points %}
    <tr><th scope="row">{{ point.label }}</th><td class="number">{{ point.probability | figure }}</td>
      {{- figures(point.figures, decided) }}</tr>
    {% endfor %}
    </tbody>
  </table>
  </div>
</section>
{% endif %}

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

{% if gains %}
{% set pooled = sites | selectattr("baselines.plaintext_central", "defined") | list | length > 0 -%}
<section aria-labelledby="gains">
  <h2 id="gains">What each hospital gains</h2>
  <p class="note">On each hospital&rsquo;s own test patients: the federation&rsquo;s model, the model that it trained
    alone{{ ", in plaintext" if mode == "simulation" }}, and what the first is better by.
    {% if pooled %}Pooled is the model of all data in one place, in plaintext.{% endif %}
    The AUC decides, and the accuracy where no AUC is defined. Of few sequences a small difference says little.</p>
  <div class="scroll" role="region" aria-labelledby="gains" tabindex="0">
  <table class="gains">
    <thead>
      <tr><th scope="col" rowspan="2">Hospital</th><th scope="col" rowspan="2">Joined is</th>
        <th scope="colgroup" colspan="2">Sequences</th>
        {% for heading in ["AUC", "Accuracy"] %}
        <th scope="colgroup" colspan="{{ 4 if pooled else 3 }}">{{ heading }}</th>
        {% endfor %}
        </tr>
      <tr><th scope="col" class="number first">Train</th><th scope="col" class="number">Test</th>
        {% for heading in ["AUC", "Accuracy"] %}
        <th scope="col" class="number first">Federated</th><th scope="col" class="number">Alone</th>
        <th scope="col" class="number">Difference</th>
        {% if pooled %}<th scope="col" class="number">Pooled</th>{% endif %}
        {% endfor %}</tr>
    </thead>
    <tbody>
    {% for site in gains %}
    <tr{% if site.gain.verdict == "worse" %} class="worse"{% endif %}><th scope="row">{{ site.name }}</th>
      <td class="verdict">{{ {"worse": "&#9660; worse", "better": "&#9650; better", "equal": "= as good"}
        .get(site.gain.verdict, "&ndash;") | safe }}</td>
      <td class="number first">{{ site.sequences.get("train", 0) }}</td>
      <td class="number">{{ site.sequences.get("test", 0) }}</td>
      {% for name in ["auc", "accuracy"] %}
      <td class="number first">{{ site.test[name] | figure }}</td>
      <td class="number">{{ site.baselines.local_only[name] | figure }}</td>
      <td class="number">{{ site.gain[name] | difference }}</td>
      {% if pooled %}
      <td class="number">{{ site.baselines.get("plaintext_central", {}).get(name) | figure }}</td>
      {% endif %}
      {% endfor %}
      </tr>
    {% endfor %}
    </tbody>
  </table>
  </div>
</section>
{% endif %}
{% if models %}
<section class="continued" aria-label="Models of each hospital">
  <details>
    <summary>All figures of each model on each hospital&rsquo;s own test patients</summary>
    <div class="scroll" role="region" aria-label="All figures of each model" tabindex="0">
    <table>
      <thead><tr><th scope="col">Hospital</th><th scope="col">Model</th><th scope="col" class="number">Loss</th>
        {% for name in names %}<th scope="col" class="number">{{ headings[name] }}</th>{% endfor %}</tr></thead>
      <tbody>
      {% for row in models %}
      <tr><th scope="row">{{ row.site }}</th><td>{{ row.label }}</td>
        <td class="number">{{ row.figures.loss | figure }}</td>{{ figures(row.figures, names) }}</tr>
      {% endfor %}
      </tbody>
    </table>
    </div>
  </details>
</section>
{% endif %}

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
      <div><dt>{{ name }}</dt><dd class="long">{{ version }}</dd></div>
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
)
