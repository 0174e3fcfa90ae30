#include "plan/testing.h"

#include <algorithm>

#include "base/units.h"

namespace tidepool::plan::testing {
namespace {

// [min, max], with three decimals.
double Decimal(std::mt19937& random, double min, double max) {
  return static_cast<double>(static_cast<int64_t>(std::uniform_real_distribution<double>(min, max)(random) * 1000)) / 1000;
}

Layout RandomLayout(std::mt19937& random) {
  constexpr Layout kLayouts[] = {{Split::kTensor, {Split::kData, Split::kNone, Split::kNone}},
                                 {Split::kTensor, {Split::kNone, Split::kData, Split::kNone}},
                                 {Split::kNone, {Split::kData, Split::kTensor, Split::kNone}},
                                 {Split::kNone, {Split::kNone, Split::kData, Split::kTensor}}};
  return kLayouts[random() % 4];
}

}  // namespace

OpList RandomOpList(std::mt19937& random, const RandomListOptions& options) {
  OpList list;
  list.name = list.profile_model = "random";
  list.file_model_name = "gpt";
  list.file_model_size = "random";
  list.file_num_layers = {options.layers};
  list.master_factor = random() % 2 == 0 ? 2 : 0;
  list.optimizer_factor = random() % 2 == 0 ? 4 : 2;
  for (int32_t i = 0; i < options.extra + options.period; ++i) {
    DistinctOp op;
    op.name = fmt::format("op{}", i);
    op.algorithms.clear();
    for (int32_t a = 0; a < options.algorithms; ++a) {
      op.algorithms.push_back(options.reshards ? SplitAlgorithm{RandomLayout(random), RandomLayout(random)} : SplitAlgorithm{});
    }
    op.tunable = random() % 2 == 0;
    op.recompute_seed = random() % 4 != 0;
    op.starts_layer = i == options.extra;
    constexpr double kFactors[] = {0, 1, 1, 1.5};
    op.activation_factor = kFactors[random() % 4];
    list.distinct.push_back(std::move(op));
  }
  for (int32_t i = 0; i < options.extra; ++i) list.ops.push_back(static_cast<uint16_t>(i));
  for (int32_t layer = 0; layer < options.layers; ++layer) {
    const auto start = static_cast<int32_t>(list.ops.size());
    if (options.period >= 4) list.skips.push_back({start, start + 3});
    for (int32_t i = 0; i < options.period; ++i) list.ops.push_back(static_cast<uint16_t>(options.extra + i));
  }
  if (options.layers > 0) list.segments = {{options.extra, options.period, options.layers}};
  const Status status = list.Finish();
  TIDEPOOL_CHECK(status.ok(), "{}", ToString(status));
  return list;
}

profile::Bundle RandomProfile(std::mt19937& random, const OpList& list, const RandomProfileOptions& options) {
  profile::Bundle bundle;
  size_t algorithms = 1;
  for (const DistinctOp& op : list.distinct) algorithms = std::max(algorithms, op.algorithms.size());
  for (const int32_t batch : options.batches) {
    for (const int32_t width : options.widths) {
      for (size_t algorithm = 0; algorithm < algorithms; ++algorithm) {
        const bool first = batch == options.batches.front() && width == options.widths.front() && algorithm == 0;
        if (!first && std::uniform_real_distribution<double>(0, 1)(random) < options.missing) continue;
        for (const DistinctOp& op : list.distinct) {
          profile::OpRow row;
          row.key = {list.profile_model, op.name, profile::Phase::kForward,       batch,
                     list.dtype,         width,   static_cast<int32_t>(algorithm)};
          row.median_us = Decimal(random, 1, 1000);
          row.memory = {Decimal(random, 0.1, 64) * kMiB, Decimal(random, 0.1, 64) * kMiB, Decimal(random, 0, 64) * kMiB,
                        Decimal(random, 0, 64) * kMiB, Decimal(random, 0, 64) * kMiB};
          bundle.ops.push_back(row);
          row.key.phase = profile::Phase::kBackward;
          row.median_us = Decimal(random, 1, 2000);
          row.memory = {.reserved_bytes = Decimal(random, 0, 64) * kMiB};
          bundle.ops.push_back(std::move(row));
        }
      }
    }
  }
  using profile::CollectiveKind;
  for (const CollectiveKind kind :
       {CollectiveKind::kAllReduce, CollectiveKind::kAllGather, CollectiveKind::kReduceScatter, CollectiveKind::kAllToAll}) {
    for (const int32_t ranks : {2, 4, 8}) {
      for (int32_t mib = 0; mib <= 64; ++mib) {
        bundle.collectives.push_back({list.profile_model, kind, ranks, static_cast<double>(mib) * kMiB, Decimal(random, 1, 500)});
      }
    }
  }
  for (const profile::LinkKind kind : {profile::LinkKind::kPeer, profile::LinkKind::kNetwork}) {
    for (int exponent = 0; exponent <= 10; ++exponent) {
      const double mib = 1 << exponent;
      bundle.links.push_back({.kind = kind, .bytes = mib * kMiB, .median_us = mib * Decimal(random, 20, 200)});
    }
  }
  std::sort(bundle.ops.begin(), bundle.ops.end(), [](const auto& a, const auto& b) { return a.key < b.key; });
  return bundle;
}

std::unique_ptr<RandomProblem> MakeRandomProblem(std::mt19937& random, const RandomProblemOptions& options) {
  auto problem = std::make_unique<RandomProblem>();
  problem->ops = RandomOpList(random, options.list);
  auto table = ProfileTable::Build(RandomProfile(random, problem->ops, options.profile), problem->ops, kParityTable);
  TIDEPOOL_CHECK(table.ok(), "{}", ToString(table.status()));
  problem->table = std::make_unique<ProfileTable>(*std::move(table));
  problem->cluster = options.cluster;
  auto model = MakeParityModel(problem->ops, *problem->table, problem->cluster, options.micro_batches);
  TIDEPOOL_CHECK(model.ok(), "{}", ToString(model.status()));
  problem->model = *std::move(model);
  return problem;
}

StagePtr RandomStage(std::mt19937& random, const CostModel& model, int32_t first, int32_t count, int32_t gpus,
                     int32_t micro_batch) {
  const std::vector<OpChoice> splits = model.SplitsOf(gpus, micro_batch);
  TIDEPOOL_CHECK(!splits.empty(), "no split of {} devices", gpus);
  std::vector<OpChoice> choices;
  OpChoice choice = splits[random() % splits.size()];
  for (int32_t i = 0; i < count; ++i) {
    if (random() % 3 == 0) choice = splits[random() % splits.size()];
    choice.recompute = random() % 3 != 0;
    choices.push_back(choice);
  }
  return Stage::Make(first, choices);
}

std::unique_ptr<Plan> RandomPlan(std::mt19937& random, const CostModel& model, int32_t micro_batch, bool mixed) {
  const std::vector<int32_t> sizes = model.StageSizes(micro_batch);
  const int32_t ops = model.ops().size(), gpus = model.cluster().gpus();
  if (sizes.empty()) return nullptr;
  for (int attempt = 0; attempt < 300; ++attempt) {
    std::vector<int32_t> devices;
    int32_t used = 0;
    while (used < gpus && static_cast<int32_t>(devices.size()) < ops) {
      const int32_t size = sizes[random() % sizes.size()];
      if (!model.cluster().IsStageRange(used, size)) break;
      devices.push_back(size);
      used += size;
    }
    if (used != gpus) continue;
    auto plan = std::make_unique<Plan>();
    plan->micro_batch = micro_batch;
    plan->global_batch = micro_batch * static_cast<int64_t>(1 + random() % 32);
    std::vector<int32_t> cuts = {0, ops};
    while (cuts.size() < devices.size() + 1) {
      const auto cut = static_cast<int32_t>(1 + random() % (ops - 1));
      if (std::find(cuts.begin(), cuts.end(), cut) == cuts.end()) cuts.push_back(cut);
    }
    std::sort(cuts.begin(), cuts.end());
    for (size_t i = 0; i < devices.size(); ++i) {
      const int32_t count = cuts[i + 1] - cuts[i];
      const std::vector<OpChoice> splits = model.SplitsOf(devices[i], micro_batch);
      plan->stages.push_back(mixed ? RandomStage(random, model, cuts[i], count, devices[i], micro_batch)
                                   : Stage::MakeUniform(cuts[i], count, splits[random() % splits.size()]));
    }
    return plan;
  }
  return nullptr;
}

StageTotals ReferenceTotals(const CostModel& model, const Stage& stage, int32_t micro_batch) {
  const OpList& ops = model.ops();
  const ProfileTable& table = model.table();
  const std::vector<OpChoice> choices = stage.Choices();
  StageTotals totals;
  totals.gpus = choices[0].gpus();
  double forward_reserved = 0, backward_reserved = 0, run = 0;
  // Backwards, to sum in another order than the model does.
  for (int32_t i = stage.count() - 1; i >= 0; --i) {
    const int32_t position = stage.first() + i, op = ops.ops[position], row = model.RowOf(choices[i], micro_batch);
    if (row < 0) return UnpricedTotals();
    const auto at = [&](Column column) { return table.At(column, row, op); };
    const double activation = Quantized(at(Column::kActivationMib) * ops.distinct[op].activation_factor);
    totals.forward_us += at(Column::kForwardUs);
    totals.backward_us += at(Column::kBackwardUs);
    totals.weight_mib += at(Column::kWeightMib);
    totals.activation_mib += activation;
    if (choices[i].recompute) totals.recompute_us += at(Column::kForwardUs);
    const bool inside = i + 1 < stage.count();
    if (inside) {
      forward_reserved = std::max(forward_reserved, at(Column::kForwardReservedMib));
      backward_reserved = std::max(backward_reserved, at(Column::kBackwardReservedMib));
      const ReshardCost reshard = model.ReshardBetween(position + 1, choices[i], choices[i + 1], micro_batch);
      totals.reshard_forward_us += reshard.forward_us;
      totals.reshard_backward_us += reshard.backward_us;
    }
    if (inside && choices[i].recompute && choices[i + 1].recompute && !ops.at(position + 1).starts_layer) {
      totals.saved_mib += activation;
      run += activation;
      totals.peak_run_mib = std::max(totals.peak_run_mib, run);
    } else {
      run = 0;
    }
  }
  const OpChoice &front = choices.front(), &back = choices.back();
  int32_t out_row = table.RowOf(micro_batch / back.data_parallel, front.tensor_parallel, back.algorithm);
  if (out_row < 0) out_row = model.RowOf(back, micro_batch);
  totals.input_mib = table.At(Column::kInputMib, model.RowOf(front, micro_batch), ops.ops[stage.first()]);
  const double output_mib = table.At(Column::kOutputMib, out_row, ops.ops[stage.end() - 1]);
  for (int link = 0; link < kLinkClasses; ++link) {
    totals.in_us[link] = table.TransferUs(static_cast<LinkClass>(link), totals.input_mib);
    totals.out_us[link] = table.TransferUs(static_cast<LinkClass>(link), output_mib);
  }
  totals.state_mib = totals.weight_mib * ops.state_factor();
  totals.reserved_mib = std::max(forward_reserved + backward_reserved, totals.weight_mib);
  return totals;
}

}  // namespace tidepool::plan::testing
