// The TSV tables of a bundle.
#include <algorithm>
#include <array>
#include <tuple>

#include "profile/bundle_io.h"
#include "profile/table.h"

namespace tidepool::profile {
namespace {

using std::string_view;

constexpr int64_t kMaxBatch = int64_t{1} << 40;
constexpr int64_t kMaxCount = (int64_t{1} << 31) - 1;

constexpr std::array<string_view, 19> kOpColumns = {
    "model",          "op",         "phase",  "batch",    "dtype",       "tensor_parallel", "algorithm",    "repeats",
    "median_us",      "p10_us",     "p90_us", "first_us", "input_bytes", "output_bytes",    "weight_bytes", "activation_bytes",
    "reserved_bytes", "peak_bytes", "source"};
constexpr std::array<string_view, 5> kCollectiveColumns = {"model", "kind", "ranks", "bytes", "median_us"};
constexpr std::array<string_view, 4> kLinkColumns = {"kind", "memory", "bytes", "median_us"};
constexpr std::array<string_view, 2> kPinColumns = {"bytes", "median_us"};

template <typename Value>
Value Enumerated(TableReader* reader, StatusOr<Value> (*parse)(string_view)) {
  const StatusOr<Value> value = parse(reader->Text());
  if (value.ok()) return *value;
  reader->Fault("is not understood: " + MessageOf(value.status()));
  return Value{};
}

OpRow ReadOp(TableReader* reader) {
  OpRow row;
  row.key.model = reader->Text();
  if (row.key.model.empty()) reader->Fault("is empty; allowed: the name of a network");
  row.key.op = reader->Text();
  row.key.phase = Enumerated(reader, ParsePhase);
  row.key.batch = reader->Integer(1, kMaxBatch);
  row.key.dtype = Enumerated(reader, DTypeFromSafetensors);
  row.key.tensor_parallel = static_cast<int32_t>(reader->Integer(1, kMaxCount));
  row.key.algorithm = static_cast<int32_t>(reader->Integer(0, kMaxCount));
  row.repeats = static_cast<int32_t>(reader->Integer(0, kMaxCount));
  row.median_us = reader->PositiveNumber();
  for (double* value :
       {&row.p10_us, &row.p90_us, &row.first_us, &row.memory.input_bytes, &row.memory.output_bytes, &row.memory.weight_bytes,
        &row.memory.activation_bytes, &row.memory.reserved_bytes, &row.memory.peak_bytes}) {
    *value = reader->Number();
  }
  row.source = reader->Text();
  return row;
}

CollectiveRow ReadCollective(TableReader* reader) {
  CollectiveRow row;
  row.model = reader->Text();
  row.kind = Enumerated(reader, ParseCollectiveKind);
  row.ranks = static_cast<int32_t>(reader->Integer(2, kMaxCount));
  row.bytes = reader->PositiveNumber();
  row.median_us = reader->PositiveNumber();
  return row;
}

LinkRow ReadLink(TableReader* reader) {
  LinkRow row;
  row.kind = Enumerated(reader, ParseLinkKind);
  const string_view memory = reader->Text();
  row.pinned = memory == "pinned";
  if (!row.pinned && memory != "pageable") reader->Fault(fmt::format("is '{}'; allowed: pinned, pageable", Shown(memory)));
  row.bytes = reader->PositiveNumber();
  row.median_us = reader->PositiveNumber();
  return row;
}

PinRow ReadPin(TableReader* reader) {
  PinRow row;
  row.bytes = reader->PositiveNumber();
  row.median_us = reader->PositiveNumber();
  return row;
}

// What makes a row unique, and its place in the file.
const OpKey& KeyOf(const OpRow& row) { return row.key; }
auto KeyOf(const CollectiveRow& row) { return std::tie(row.model, row.kind, row.ranks, row.bytes); }
auto KeyOf(const LinkRow& row) { return std::make_tuple(row.kind, !row.pinned, row.bytes); }
auto KeyOf(const PinRow& row) { return row.bytes; }

template <typename Row>
void Sort(std::vector<Row>* rows) {
  std::stable_sort(rows->begin(), rows->end(), [](const Row& a, const Row& b) { return KeyOf(a) < KeyOf(b); });
}

template <typename Row>
Status ParseRows(const std::string& file, string_view text, std::span<const string_view> columns, Row (*read)(TableReader*),
                 std::vector<Row>* rows) {
  TableReader reader(file, text, columns);
  std::vector<std::pair<Row, int64_t>> found;  // with its line
  while (reader.NextRow()) {
    Row row = read(&reader);
    if (reader.row_ok()) found.emplace_back(std::move(row), reader.line());
  }
  std::stable_sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return KeyOf(a.first) < KeyOf(b.first); });
  rows->clear();
  rows->reserve(found.size());
  for (size_t i = 0; i < found.size(); ++i) {
    if (i > 0 && !(KeyOf(rows->back()) < KeyOf(found[i].first))) {
      reader.faults().Add(fmt::format("{}:{}:1: the row has the key of line {}; allowed: each key once", file, found[i].second,
                                      found[i - 1].second));
    }
    rows->push_back(std::move(found[i].first));
  }
  return reader.faults().ToStatus();
}

std::string Header(std::span<const string_view> columns) {
  std::string text;
  for (const string_view column : columns) {
    if (!text.empty()) text += '\t';
    text += column;
  }
  return text + "\n";
}

std::string OpsText(const std::vector<OpRow>& rows) {
  std::string text = Header(kOpColumns);
  for (const OpRow& row : rows) {
    fmt::format_to(std::back_inserter(text), "{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\n",
                   row.key.model, row.key.op, NameOf(row.key.phase), row.key.batch, SafetensorsName(row.key.dtype),
                   row.key.tensor_parallel, row.key.algorithm, row.repeats, row.median_us, row.p10_us, row.p90_us, row.first_us,
                   row.memory.input_bytes, row.memory.output_bytes, row.memory.weight_bytes, row.memory.activation_bytes,
                   row.memory.reserved_bytes, row.memory.peak_bytes, row.source);
  }
  return text;
}

}  // namespace

std::string_view FileName(TableKind kind) {
  switch (kind) {
    case TableKind::kOps: return "ops.tsv";
    case TableKind::kCollectives: return "collectives.tsv";
    case TableKind::kLinks: return "links.tsv";
    case TableKind::kPins: return "pins.tsv";
  }
  return "?";
}

void SortRows(Bundle* bundle) {
  Sort(&bundle->ops);
  Sort(&bundle->collectives);
  Sort(&bundle->links);
  Sort(&bundle->pins);
}

std::string TableText(TableKind kind, const Bundle& bundle) {
  switch (kind) {
    case TableKind::kOps: return OpsText(bundle.ops);
    case TableKind::kCollectives: {
      std::string text = Header(kCollectiveColumns);
      for (const CollectiveRow& row : bundle.collectives)
        text += fmt::format("{}\t{}\t{}\t{}\t{}\n", row.model, NameOf(row.kind), row.ranks, row.bytes, row.median_us);
      return text;
    }
    case TableKind::kLinks: {
      std::string text = Header(kLinkColumns);
      for (const LinkRow& row : bundle.links)
        text += fmt::format("{}\t{}\t{}\t{}\n", NameOf(row.kind), row.pinned ? "pinned" : "pageable", row.bytes, row.median_us);
      return text;
    }
    case TableKind::kPins: {
      std::string text = Header(kPinColumns);
      for (const PinRow& row : bundle.pins) text += fmt::format("{}\t{}\n", row.bytes, row.median_us);
      return text;
    }
  }
  return {};
}

Status ParseTable(TableKind kind, const std::string& file, string_view text, Bundle* bundle) {
  switch (kind) {
    case TableKind::kOps: return ParseRows(file, text, kOpColumns, ReadOp, &bundle->ops);
    case TableKind::kCollectives: return ParseRows(file, text, kCollectiveColumns, ReadCollective, &bundle->collectives);
    case TableKind::kLinks: return ParseRows(file, text, kLinkColumns, ReadLink, &bundle->links);
    case TableKind::kPins: return ParseRows(file, text, kPinColumns, ReadPin, &bundle->pins);
  }
  return {};
}

}  // namespace tidepool::profile
