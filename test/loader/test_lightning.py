import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import Subset
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.testing import withCUDA

from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.loader import (
    GDeRSampler,
    NodeBudgetBatchSampler,
    SoftRandomSampler,
)
from torch_geometric_ext.loader.lightning import SamplerCallback
from torch_geometric_ext.nn import HypersphericalPrototypes


def make_model(lightning, sampler=None, prototypes=None):
    """Return a module that records the graphs of each epoch."""

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.encoder = torch.nn.Linear(4, 8)
            self.head = torch.nn.Linear(8, 2)
            self.prototypes = prototypes
            self.graphs = {}

        def training_step(self, batch, batch_idx):
            self.graphs.setdefault(self.current_epoch, [])
            self.graphs[self.current_epoch] += batch.graph_idx.tolist()
            h = self.encoder(batch.x).relu()
            loss = F.cross_entropy(self.head(h), batch.y)
            if prototypes is not None:
                loss = loss + sampler.update(h, batch.y, batch.graph_idx)
            return loss

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.01)

    return Model()


def make_dataset(num_graphs=40):
    x = torch.randn(num_graphs, 4, generator=torch.manual_seed(0))
    return IndexedDataset(
        [
            Data(x=x[i : i + 1], y=torch.tensor([i % 2]), num_nodes=1)
            for i in range(num_graphs)
        ]
    )


def make_trainer(lightning, path, sampler, max_epochs, **kwargs):
    kwargs = {
        'accelerator': 'cpu',
        'callbacks': [SamplerCallback(sampler)],
        **kwargs,
    }
    return lightning.Trainer(
        max_epochs=max_epochs,
        default_root_dir=path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )


class Run:
    def __init__(self, lightning, path, max_epochs, num_workers=0, **kwargs):
        torch.manual_seed(3)
        dataset = make_dataset()
        prototypes = HypersphericalPrototypes(8, 2)
        self.sampler = GDeRSampler(dataset, prototypes, 0.5, 6, balance=1.0)
        self.loader = DataLoader(
            dataset,
            batch_size=8,
            sampler=self.sampler,
            num_workers=num_workers,
        )
        self.model = make_model(lightning, self.sampler, prototypes)
        self.trainer = make_trainer(
            lightning, path, self.sampler, max_epochs, **kwargs
        )

    def fit(self, **kwargs):
        self.trainer.fit(self.model, self.loader, **kwargs)
        return self.model.graphs


pytestmark = [
    pytest.mark.filterwarnings('ignore::UserWarning:lightning'),
    pytest.mark.filterwarnings('ignore::DeprecationWarning'),
    pytest.mark.filterwarnings('ignore::FutureWarning'),
]


@withCUDA  # Lightning does not know the pretend accelerator.
@pytest.mark.parametrize('num_workers', [0, 2])
def test_checkpoints(device, tmp_path, num_workers):
    lightning = pytest.importorskip('lightning.pytorch')
    kwargs = dict(num_workers=num_workers, accelerator=device.type)
    expected = Run(lightning, tmp_path, 6, **kwargs).fit()
    assert [len(graphs) for graphs in expected.values()] == 6 * [20]
    assert len({tuple(graphs) for graphs in expected.values()}) == 6

    run = Run(lightning, tmp_path, 3, **kwargs)
    first = run.fit()
    run.trainer.save_checkpoint(tmp_path / 'last.ckpt')
    other = Run(lightning, tmp_path, 6, **kwargs)
    rest = other.fit(ckpt_path=tmp_path / 'last.ckpt')
    assert {**first, **rest} == expected
    assert min(rest) == 3
    # The history continues, too:
    assert other.sampler.history()['epoch'] == list(range(6))


@pytest.mark.parametrize('num_workers', [0, 2])
@pytest.mark.parametrize('step', [1, 5, 7])  # Of three steps per epoch.
@pytest.mark.filterwarnings('ignore:.*resuming from a checkpoint')
def test_resume_within_an_epoch(tmp_path, num_workers, step):
    lightning = pytest.importorskip('lightning.pytorch')

    class Save(lightning.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == step:
                trainer.save_checkpoint(tmp_path / 'last.ckpt')

    def make(learns):
        run = Run(lightning, tmp_path, 4, num_workers)
        if not learns:
            run.sampler = SoftRandomSampler(make_dataset(), 0.5, 4)
            run.loader = DataLoader(
                make_dataset(),
                batch_size=8,
                sampler=run.sampler,
                num_workers=num_workers,
            )
            run.model = make_model(lightning)
            run.trainer = make_trainer(lightning, tmp_path, run.sampler, 4)
        return run

    for learns in [False, True]:
        first = make(learns)
        first.trainer.callbacks.append(Save())
        expected = first.fit()
        second = make(learns)
        rest = second.fit(ckpt_path=tmp_path / 'last.ckpt')
        epoch, done = step // 3, step % 3 * 8
        assert rest[epoch] == expected[epoch][done:]
        assert all(expected[i] == rest[i] for i in range(epoch + 1, 4))
        assert set(rest) == set(range(epoch, 4))
        for a, b in zip(first.model.parameters(), second.model.parameters()):
            assert torch.equal(a, b)


def test_checkpoint_within_an_epoch(tmp_path):
    lightning = pytest.importorskip('lightning.pytorch')
    sampler = SoftRandomSampler(10, keep_ratio=0.5, num_epochs=6)
    callback = SamplerCallback(sampler)
    sampler.set_epoch(2)
    order = list(sampler)
    other = SoftRandomSampler(10, keep_ratio=0.5, num_epochs=6)
    assert isinstance(callback, lightning.Callback)
    SamplerCallback(other).load_state_dict(callback.state_dict())
    other.set_epoch(2)
    assert list(other) == order


def test_logs(tmp_path):
    lightning = pytest.importorskip('lightning.pytorch')
    run = Run(lightning, tmp_path, 2)
    run.fit()
    metrics = run.trainer.logged_metrics
    history = run.sampler.history()
    for key in ['num_graphs', 'turnover', 'coverage', 'num_suspects']:
        assert float(metrics[f'sampler/{key}']) == pytest.approx(
            history[key][-1]
        )
    assert 'sampler/epoch' not in metrics
    assert 'sampler/per_class' not in metrics


def test_batch_sampler(tmp_path):
    lightning = pytest.importorskip('lightning.pytorch')
    dataset = make_dataset()
    sampler = SoftRandomSampler(dataset, 0.5, num_epochs=3)
    batch_sampler = NodeBudgetBatchSampler(sampler, dataset, max_num=6)
    loader = DataLoader(dataset, batch_sampler=batch_sampler)
    model = make_model(lightning)
    make_trainer(lightning, tmp_path, sampler, 3).fit(model, loader)
    expected = SoftRandomSampler(dataset, 0.5, num_epochs=3)
    for epoch in range(3):
        assert model.graphs[epoch] == list(expected)


def test_epochs_of_different_lengths(tmp_path):
    lightning = pytest.importorskip('lightning.pytorch')
    dataset = make_dataset()

    def fit(**kwargs):
        sampler = SoftRandomSampler(dataset, 0.5, 3, anneal_epochs=1)
        loader = DataLoader(dataset, batch_size=8, sampler=sampler)
        model = make_model(lightning)
        trainer = make_trainer(lightning, tmp_path, sampler, 3, **kwargs)
        trainer.fit(model, loader)
        return [len(graphs) for graphs in model.graphs.values()]

    assert fit(reload_dataloaders_every_n_epochs=1) == [20, 20, 40]
    with pytest.raises(ValueError, match=r'differ in their lengths \(got 0'):
        fit()


def test_errors(tmp_path):
    lightning = pytest.importorskip('lightning.pytorch')
    with pytest.raises(TypeError, match="'sampler' of 'SamplerCallback'"):
        SamplerCallback([0, 1])
    dataset = make_dataset()
    sampler = SoftRandomSampler(dataset, 0.5, num_epochs=3)
    trainer = make_trainer(lightning, tmp_path, sampler, 1)
    loader = DataLoader(dataset, batch_size=8, shuffle=True)
    with pytest.raises(ValueError, match=r"\(got \['RandomSampler'\]\)"):
        trainer.fit(make_model(lightning), loader)
    sampler = SoftRandomSampler(dataset, 0.5, 3, num_replicas=3, rank=2)
    loader = DataLoader(dataset, batch_size=8, sampler=sampler)
    trainer = make_trainer(lightning, tmp_path, sampler, 1)
    with pytest.raises(ValueError, match=r'num_replicas=1.* \(got 3\)'):
        trainer.fit(make_model(lightning), loader)


def test_import_is_lazy(tmp_path):
    code = (
        'import sys, torch_geometric_ext.loader\n'
        "assert 'lightning' not in sys.modules\n"
        "sys.modules['lightning'] = None\n"
        'from torch_geometric_ext.loader import SoftRandomSampler\n'
        'from torch_geometric_ext.loader.lightning import SamplerCallback\n'
        'SamplerCallback(SoftRandomSampler(2, 0.5, 1))\n'
    )
    out = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True
    )
    error = "'SamplerCallback' requires 'lightning' (pip install lightning)"
    assert f'ImportError: {error}' in out.stderr


def run_rank(path):
    import lightning.pytorch as lightning

    os.environ['LOCAL_RANK'] = os.environ['RANK']
    out = {}
    for use_distributed_sampler in [False, True]:
        dataset = IndexedDataset(Subset(make_dataset(), range(39)))
        torch.manual_seed(3)
        prototypes = HypersphericalPrototypes(8, 2)
        # As created before the trainer starts the other ranks:
        sampler = GDeRSampler(
            dataset, prototypes, 0.5, 4, balance=1.0, num_replicas=1, rank=0
        )
        loader = DataLoader(dataset, batch_size=4, sampler=sampler)
        model = make_model(lightning, sampler, prototypes)
        trainer = make_trainer(
            lightning,
            path,
            sampler,
            4,
            strategy='ddp',
            devices=2,
            use_distributed_sampler=use_distributed_sampler,
        )
        try:
            trainer.fit(model, loader)
        except ValueError as error:
            out['error'] = str(error)
        else:
            trainer.save_checkpoint(f'{path}/last.ckpt')
            out['graphs'] = model.graphs
            out['weight'] = model.head.weight.detach()
            out['state'] = sampler.state_dict()
        del trainer, model
    torch.save(out, f'{path}/{torch.distributed.get_rank()}.pt')


def test_two_ranks(run_ranks, tmp_path):
    pytest.importorskip('lightning.pytorch')
    run_ranks(__file__)
    first, second = (torch.load(tmp_path / f'{rank}.pt') for rank in range(2))
    assert "'use_distributed_sampler=False'" in first['error']
    assert first['error'] == second['error']
    assert torch.equal(first['weight'], second['weight'])
    checkpoint = torch.load(tmp_path / 'last.ckpt')
    (state,) = checkpoint['callbacks'].values()
    for key in ['order', 'distance', 'embedding_idx', 'embedding']:
        torch.testing.assert_close(
            first['state'][key], second['state'][key], equal_nan=True
        )
        torch.testing.assert_close(
            first['state'][key], state[key], equal_nan=True
        )
    for epoch in range(4):
        a, b = first['graphs'][epoch], second['graphs'][epoch]
        assert len(a) == len(b) == 10
    both = [x for pair in zip(a, b) for x in pair]
    assert both == state['order'].tolist()
    assert state['embedding_idx'].tolist() == sorted(both)
