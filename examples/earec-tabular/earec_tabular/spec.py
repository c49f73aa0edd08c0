"""The tabular modality's declaration."""

from earec_core.plugins.spec import ModalitySpec

SPEC = ModalitySpec(
    name="tabular",
    api_version=(2, 0),
    summary="An item's numbers and categories: price, rating, ...",
    config="earec_tabular.modality:TabularConfig",
    factory="earec_tabular.modality:TabularModality",
    slot_token="<table>",
    order=40,
)
