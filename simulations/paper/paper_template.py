"""The page of an experiment as a Jinja template."""

from fedpp.reporting.page import HEAD

OWN_STYLE = """\
.dense { font-size: .88rem; line-height: 1.4; }
.dense th, .dense td { padding: .4rem .3rem; }
.dense th:first-child { padding-left: 0; }
.dense .number { width: 7%; }
.dense tbody th { min-width: 0; white-space: nowrap; }
.dense thead th { white-space: normal; font-size: .78rem; line-height: 1.25; }
.dense small { font-size: .78rem; font-weight: 400; color: var(--soft); }
.dense .first th, .dense .first td { border-bottom: 0; padding-bottom: 0; }
.dense th.group { border-bottom: 0; padding-bottom: 0; text-align: center; }
.spread { columns: 24rem; column-gap: 3rem; margin-bottom: 2rem; }
.spread div { break-inside: avoid; }
"""

TEMPLATE = (
    HEAD
    + """\
<body>
<header>
  <p class="kicker">fedpp, the experiment of Kolhar &amp; Aldossary (AI 2023, 4(3), 706-720)</p>
  <h1>{% for name in record.settings.networks %}{{ name | network }}{{ ", " }}{% endfor %}
    {{ "plaintext and ciphertext" if record.settings.sides | length > 1 else record.settings.sides[0] }}</h1>
  <p class="lead">{{ record.data.described }}</p>
  <dl class="facts">
    <div><dt>Patients</dt><dd>{{ record.data.patients }}</dd></div>
    <div><dt>Sequences</dt><dd>{{ record.data.sequences }}</dd></div>
    {% for name, count in record.data.sequences_by_class.items() %}
    <div><dt>{{ name }}</dt><dd>{{ count }}</dd></div>
    {% endfor %}
    <div><dt>Folds, by patient</dt><dd>{{ record.settings.folds }}</dd></div>
    <div><dt>Arithmetic</dt><dd>{{ record.settings.dtype }}</dd></div>
    <div><dt>Protocol</dt><dd>{{ record.settings.protocol }}</dd></div>
    <div><dt>Took</dt><dd>{{ record.seconds | duration }}{% if record.runs_kept_from_before %}, and
      {{ record.runs_kept_from_before | counted("training") }} before{% endif %}</dd></div>
  </dl>
</header>
<main>
<section class="protection" aria-labelledby="conclusions">
  <h2 id="conclusions">What may be concluded</h2>
  <ul>{% for line in record.conclusions %}<li>{{ line }}</li>{% endfor %}</ul>
</section>

<section aria-labelledby="table1">
  <h2 id="table1">Table 1</h2>
  <p class="note">Mean and standard deviation over the folds of the first seed, on test patients. Positive means: not
    &ldquo;{{ record.data.classes[0] }}&rdquo;. Seconds are of one training, in the first fold with compilation; the
    ratio is that of the median epochs, ciphertext to plaintext.</p>
  <div class="scroll">
  <table class="dense">
    <thead><tr><th>Network</th><th class="number">Parameters</th>
      {% for name in columns %}<th class="number">{{ headings[name] }}</th>{% endfor %}
      <th class="number">Epochs</th><th class="number">Seconds</th><th class="number">Ratio</th></tr></thead>
    <tbody>
    {% for row in record.networks %}
    {% set first = row.side == "plaintext" and record.settings.sides | length > 1 %}
    <tr{% if row.side == "ciphertext" %} class="ours"{% elif first %} class="first"{% endif %}>
      <th scope="row">{{ row.network | network }}<br><small>{{ row.side }}</small></th>
      <td class="number">{{ row.parameters }}</td>
      {% for name in columns %}
      <td class="number">{{ row.figures[name].mean | figure }}<br>
        <small>{{ row.figures[name] | spread }}</small></td>
      {% endfor %}
      <td class="number">{{ row.epochs.mean | figure(1) }}</td>
      <td class="number">{{ row.seconds.mean | figure(1) }}<br><small>{{ row.seconds | spread(1) }}</small></td>
      <td class="number">{% if row.ratio %}{{ row.ratio | figure(2) }}{% endif %}</td></tr>
    {% endfor %}
    </tbody>
  </table>
  </div>
</section>

<section aria-labelledby="auc">
  <h2 id="auc">AUC by patient</h2>
  <p class="note">On the test patients{% if record.settings.networks | length > 1 %}; best on the
    <em>validation</em> patients of all folds together is
    {{ record.best | network }}, a little optimistically: those of one fold are test patients of another{% endif %}.
    Intervals are 95 % of the mean, corrected for what folds share; of two folds there is none.</p>
  <div class="scroll">
  <table>
    <thead><tr><th>Method</th><th>On</th><th class="number">AUC</th>
      <th class="number">95 % interval</th><th class="number">Folds and seeds</th>
      <th class="number">Beyond HOG</th><th class="number">95 % interval</th>
      <th class="number">On validation</th></tr></thead>
    <tbody>
    {% for row in record.auc %}
    <tr{% if row.name == record.best %} class="ours"{% endif %}><th scope="row">{{ row.name | network }}</th>
      <td>{{ row.side }}</td><td class="number">{{ row.mean | figure }}</td>
      <td class="number">{{ row.interval | bounds }}</td><td class="number">{{ row["values"] | length }}</td>
      <td class="number">{% if row.beyond_hog is not none %}{{ "%+.3f" | format(row.beyond_hog) }}{% endif %}</td>
      <td class="number">{% if row.beyond_hog is not none %}{{ row.beyond_hog_interval | bounds("+") }}{% endif %}</td>
      <td class="number">{{ row.validation | figure }}</td></tr>
    {% endfor %}
    </tbody>
  </table>
  </div>
  <details><summary>Each fold</summary>
  <div class="scroll">
  <table class="dense">
    <thead><tr><th>Network</th><th>On</th><th class="number">Seed</th><th class="number">Fold</th>
      {% for name in columns %}<th class="number">{{ headings[name] }}</th>{% endfor %}</tr></thead>
    <tbody>
    {% for row in record.by_fold %}
    <tr><th scope="row">{{ "HOG" if row.network == "hog" else row.network | network }}</th><td>{{ row.side }}</td>
      <td class="number">{{ row.seed }}</td><td class="number">{{ row.fold }}</td>
      {% for name in columns %}<td class="number">{{ row[name] | figure }}</td>{% endfor %}</tr>
    {% endfor %}
    </tbody>
  </table>
  </div>
  </details>
</section>

{% if record.parity %}
<section aria-labelledby="parity">
  <h2 id="parity">Ciphertext against plaintext, fold by fold</h2>
  <p class="note">Same initial weights, batches and epochs. Differences are the largest of a probability over all
    sequences, and of a figure of Table 1 on the test sequences.
    {% if record.settings.control_draws %}A control is plaintext against itself, its initial weights moved by one
    unit in the last place{% if record.settings.control_draws > 1 %}: the largest of
    {{ record.settings.control_draws }} draws{% endif %}.{% endif %}</p>
  <div class="scroll">
  <table>
    <thead><tr><th>Network</th><th class="number">Fold</th><th class="number">Probability</th>
      {% if record.settings.control_draws %}<th class="number">Its control</th><th>Within</th>{% endif %}
      <th class="number">Figure</th>
      {% if record.settings.control_draws %}<th class="number">Its control</th>{% endif %}</tr></thead>
    <tbody>
    {% for row in record.parity %}
    <tr><th scope="row">{{ row.network | network }}</th><td class="number">{{ row.fold + 1 }}</td>
      <td class="number">{{ row.probability | scientific }}</td>
      {% if record.settings.control_draws %}
      <td class="number">{{ row.control_probabilities | max | scientific }}</td>
      <td>{{ "yes" if row.within else "no" }}</td>
      {% endif %}
      <td class="number">{{ row.metric | scientific }}</td>
      {% if record.settings.control_draws %}
      <td class="number">{{ row.control_metrics | max | scientific }}</td>
      {% endif %}</tr>
    {% endfor %}
    </tbody>
  </table>
  </div>
</section>
{% endif %}

<section aria-labelledby="figures">
  <h2 id="figures">Figures 4 and 5</h2>
  <p class="note">Mean over the folds of the first seed; bands from the lowest to the highest fold, on
    {{ record.settings.sides[-1] }}. After each epoch the
    validation sequences and up to {{ sample }} of the training sequences were predicted; those of the ciphertext were
    decrypted by the key's owner, which is not for a trainer to do.</p>
  {% for kind in ["accuracy", "loss"] %}
  <div class="columns figures">
    {% for chart in charts[kind] %}<figure>{{ chart }}</figure>{% endfor %}
  </div>
  {% endfor %}
</section>

<section aria-labelledby="how">
  <h2 id="how">How it was run</h2>
  <dl class="pairs spread">
    {% for name, text in settings.items() %}<div><dt>{{ name }}</dt><dd>{{ text }}</dd></div>{% endfor %}
    {% for name, text in record.versions.items() %}<div><dt>{{ name }}</dt><dd>{{ text }}</dd></div>{% endfor %}
  </dl>
  <div class="scroll">
  <table class="dense">
    <thead>
      <tr><th class="group" colspan="2"></th>
        {% for split in ["train", "validation", "test"] %}
        <th class="group" colspan="3">{{ split }}</th>{% endfor %}</tr>
      <tr><th>Fold</th><th class="number">Seed</th>
        {% for split in ["train", "validation", "test"] %}{% for what in ["patients", "sequences", "positive"] %}
        <th class="number">{{ what }}</th>{% endfor %}{% endfor %}</tr></thead>
    <tbody>
    {% for fold in record.folds %}
    <tr><th scope="row">{{ fold.fold }}</th><td class="number">{{ fold.seed }}</td>
      {% for split in ["train", "validation", "test"] %}{% for what in ["patients", "sequences", "positive"] %}
      <td class="number">{{ fold[split][what] }}</td>{% endfor %}{% endfor %}</tr>
    {% endfor %}
    </tbody>
  </table>
  </div>
  <p class="note">No patient is in two parts of a fold, and each is in test once a seed.
    {% set unlabelled = record.data.unlabelled_sequences_left_out %}
    {% if unlabelled %}{{ unlabelled }} sequences without a label were left out.{% endif %}
    {% set mixed = record.data.patients_with_both_labels %}
    {% if mixed %}{{ mixed }} patient{{ " has" if mixed == 1 else "s have" }} positive and negative
    sequences.{% endif %}</p>
</section>
</main>
<footer>The key of this experiment follows from its seed and protects nothing. MORE over floating point is obfuscation,
  not a secure cipher.</footer>
</body>
</html>
"""
)
