from torch_geometric_ext.data.sharing_report import SharingReport


def test_sharing_report():
    report = SharingReport(
        num_layers=2,
        num_graphs=1000,
        num_nodes=6000,
        num_edges=9000,
        num_bytes=5000,
        num_trees=[3, 17, 20],
        num_shared_edges=90,
        num_shared_bytes=1250,
    )
    assert report.node_ratio == 6000 / 40
    assert report.tree_ratio == 2 * 6000 / 40
    rows = [line.split() for line in str(report).splitlines()]
    assert rows == [
        ['1,000', 'graphs,', '2', 'layers', 'plain', 'shared', 'ratio'],
        ['nodes', '6,000', '40', '150.0x'],
        ['edges', '9,000', '90', '100.0x'],
        ['bytes', '5,000', '1,250', '4.0x'],
        'nodes x layers to trees 12,000 40 300.0x'.split(),
        'distinct trees: 3 (depth 0), 17 (depth 1), 20 (depth 2)'.split(),
    ]


def test_no_trees():
    report = SharingReport(0, 0, 0, 0, 0, [], 0, 0)
    assert report.node_ratio == report.tree_ratio == 0
    assert 'distinct trees' in str(report)
