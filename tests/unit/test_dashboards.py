"""The Grafana dashboard and the Prometheus alert rules: well formed, and about metrics that gopher has."""

import json
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path

import promql_parser as promql
import pytest
import yaml

from gopher.observe.accounts import SHED_REASONS
from gopher.observe.metrics import CAPTURE_METRICS, RELAY_METRICS
from gopher.observe.relaying import FAILURES

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "packaging/grafana/gopher.json").read_text())
RULES_PATH = ROOT / "packaging/prometheus/gopher.rules.yml"
RULES = [rule for group in yaml.safe_load(RULES_PATH.read_text())["groups"] for rule in group["rules"]]

# What Prometheus and its client library add by themselves.
SCRAPED = {"instance", "job"}
METRICS = {metric.name: metric for metric in (*CAPTURE_METRICS, *RELAY_METRICS)}
LABELS = {name: {*metric.labels, *SCRAPED} for name, metric in METRICS.items()}
for metric in METRICS.values():
    if metric.kind == "histogram":
        labels = LABELS.pop(metric.name)
        LABELS |= {
            f"{metric.name}_bucket": {*labels, "le"},
            f"{metric.name}_sum": labels,
            f"{metric.name}_count": labels,
        }
PROCESS = ("cpu_seconds_total", "resident_memory_bytes", "open_fds", "max_fds", "start_time_seconds")
LABELS |= {f"process_{name}": SCRAPED for name in PROCESS} | {"up": SCRAPED}
COUNTERS = {name for name in LABELS if name.endswith(("_total", "_bucket", "_sum", "_count"))}
REASONS = {**SHED_REASONS, **FAILURES}


def panels():
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def dashboard_queries():
    for panel in panels():
        for target in panel["targets"]:
            # As Grafana replaces them.
            query = target["expr"].replace("$__rate_interval", "1m")
            yield f"{panel['title']}: {target['refId']}", re.sub(r"\$\w+", "x", query)


def rule_queries():
    for rule in RULES:
        yield rule["alert"], rule["expr"]


QUERIES = dict([*dashboard_queries(), *rule_queries()])


class Selectors:
    """Every selector of a query, and whether something that needs a counter is made of it."""

    def __init__(self, query):
        self.found = []
        self.visit(promql.parse(query), inside="")

    def visit(self, node, inside):
        match node:
            case promql.VectorSelector():
                self.found.append((node, inside))
            case promql.MatrixSelector():
                self.visit(node.vector_selector, inside)
            case promql.Call():
                for argument in node.args:
                    self.visit(argument, node.func.name)
            case promql.AggregateExpr():
                self.visit(node.expr, inside)
            case promql.BinaryExpr():
                self.visit(node.lhs, inside)
                self.visit(node.rhs, inside)
            case promql.ParenExpr():
                self.visit(node.expr, inside)
            case promql.NumberLiteral():
                pass
            case _:
                raise AssertionError(f"{node!r} is not looked at")


def labels_of(node):
    """The labels that the result of a query has; None for a number. Asserts that two sides can be matched."""
    match node:
        case promql.VectorSelector():
            return LABELS[node.name]
        case promql.MatrixSelector():
            return labels_of(node.vector_selector)
        case promql.ParenExpr():
            return labels_of(node.expr)
        case promql.Call():
            [found] = [labels for labels in map(labels_of, node.args) if labels is not None]
            return found - {"le"} if node.func.name == "histogram_quantile" else found
        case promql.AggregateExpr():
            inner, kept = labels_of(node.expr), set(node.modifier.labels) if node.modifier else set()
            assert kept <= inner, f"{kept - inner} is no label of what is summed"
            return kept
        case promql.BinaryExpr():
            left, right = labels_of(node.lhs), labels_of(node.rhs)
            if left is None or right is None:
                return left if right is None else right
            matching = node.modifier.matching if node.modifier else None
            ignored = set(matching.labels) if matching else set()
            assert left - ignored == right - ignored, f"{left ^ right} differ: nothing would match"
            return left
    return None


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES.keys())
def test_query_is_about_metrics_that_exist(query):
    selectors = Selectors(query).found
    assert selectors
    for selector, function in selectors:
        assert selector.name in LABELS
        for matcher in selector.matchers.matchers:
            assert matcher.name in LABELS[selector.name], selector.name
            if matcher.name == "reason":
                assert set(matcher.value.split("|")) <= set(REASONS)
        # A rate of what may fall takes every fall for a restart; a counter by itself says how long gopher has run.
        assert (selector.name in COUNTERS) == (function in ("rate", "increase", "histogram_quantile")), selector.name
    labels_of(promql.parse(query))


# -- rules -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_rule_says_what_is_wrong_and_what_to_do(rule):
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"Gopher([A-Z][a-z]+)+", rule["alert"])
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert re.fullmatch(r"[1-9]\d*m", rule.get("for", "1m"))
    assert set(rule["annotations"]) == {"summary", "description"}
    assert "\n" not in rule["annotations"]["summary"]
    assert len(rule["annotations"]["description"]) > 60
    shown = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
    assert shown <= labels_of(promql.parse(rule["expr"]))
    # A threshold, and at the right end: an alert without one is there as soon as there is a figure.
    query = promql.parse(rule["expr"])
    assert isinstance(query, promql.BinaryExpr)
    assert isinstance(query.rhs, promql.NumberLiteral)


def test_documents_that_rules_name_exist():
    named = set(re.findall(r"docs/[\w.]+\.md", RULES_PATH.read_text()))
    assert named
    assert all((ROOT / name).exists() for name in named)


def test_rules_have_names_of_their_own():
    names = [rule["alert"] for rule in RULES]
    assert len(names) == len(set(names)) > 10


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_takes_the_rules():
    subprocess.run(["promtool", "check", "rules", str(RULES_PATH)], check=True)


# -- dashboard ---------------------------------------------------------------------------------------------------------


def test_dashboard_has_what_grafana_wants():
    assert DASHBOARD["schemaVersion"] >= 36
    assert DASHBOARD["uid"]
    assert DASHBOARD["title"]
    assert set(DASHBOARD["time"]) == {"from", "to"}
    assert "id" not in DASHBOARD, "that of somebody's own Grafana"
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(numbers) == len(set(numbers))
    variables = {each["name"] for each in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps([panel["targets"] for panel in panels()])))
    assert used - {"__rate_interval"} == variables
    for panel in panels():
        assert panel["title"]
        assert panel["description"]
        assert panel["type"] in ("timeseries", "stat")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references)) > 0


def test_variables_ask_for_metrics_that_exist():
    queries = [each["query"]["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    assert queries
    for query in queries:
        name, label = re.fullmatch(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", query).groups()
        assert label in LABELS[name]


def test_panels_do_not_overlap():
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    for place in places:
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
    for one, other in combinations(places, 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y
