// A network as the planner sees it: an ordered list of ops, most of them repeats of few distinct ones.
//
// There are two sources. PublishedOpList gives the lists of the published planning databases (GPT, T5, Wide-ResNet, in the grain
// in which they were profiled: 13 ops per transformer layer). OpListOfGraph gives the list of any model::Graph.
//
// Immutable after it was made; thread-compatible.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "base/status.h"
#include "model/graph.h"
#include "plan/sharding.h"

namespace tidepool::plan {

// How one way to split an op lays out what it reads and what it gives.
struct SplitAlgorithm {
  Layout input, output;
};

struct DistinctOp {
  std::string name;  // as rows of the profile call it
  std::string kind;  // "embedding", "layer_norm", "linear", ...
  // Index: OpChoice::algorithm. An algorithm that the op does not have means the same as 0.
  std::vector<SplitAlgorithm> algorithms = {{}};
  bool tunable = false;          // searches may give it another width or algorithm than its neighbours have
  bool recompute_seed = true;    // the recompute rule may begin with it
  bool starts_layer = false;     // what it reads is kept even if all around it is recomputed
  double activation_factor = 1;  // parity only: what of its measured activations counts (storage shared with neighbours)
  double live_factor = 1;        // calibrated only: what of them some backward pass reads, and is not counted with another op

  // From shapes, for one device and no splits. Bytes in the op list's dtype.
  int64_t parameters = 0;
  int64_t forward_flops_per_sample = 0;  // matrix products and convolutions; a multiply and an add are two
  int64_t input_bytes_per_sample = 0;    // what it reads, with skip tensors that pass by
  int64_t output_bytes_per_sample = 0;
  int64_t activation_bytes_per_sample = 0;
};

// Ops [first, first + period * repeats) are `repeats` times the same `period` ops.
struct Segment {
  int32_t first = 0, period = 0, repeats = 0;
  int32_t end() const { return first + period * repeats; }
};

// The tensor that op `producer` gives is also read by op `consumer`, further on. Runtimes carry such a tensor over one edge
// between stages and no more.
struct SkipTensor {
  int32_t producer = 0, consumer = 0;
};

// One weight that several ops use (word embeddings and the projection to words). Each stage has its own copy; their gradients are
// added up once per iteration.
struct TiedWeight {
  std::vector<int32_t> ops;  // positions, ascending, at least two
  int64_t parameters = 0;
};

struct OpList {
  std::string name;           // "gpt:1.3b"
  std::string profile_model;  // what bundles call it; "t5:22b" has the rows of "t5:11b"
  DType dtype = DType::kF32;
  std::vector<DistinctOp> distinct;
  std::vector<uint16_t> ops;  // index into distinct, in execution order
  std::vector<Segment> segments;
  std::vector<SkipTensor> skips;
  std::vector<TiedWeight> tied;
  // Training state in units of the weights: the weights themselves, gradients, fp32 master copies, moments of Adam.
  double gradient_factor = 1, master_factor = 0, optimizer_factor = 2;
  bool resharding_has_price = true;  // false for T5: its resharding is free in the parity model
  // Keys of plan files that describe the model: "model_name", "model_size", and numbers such as "hidden_size".
  std::string file_model_name, file_model_size;
  std::map<std::string, int64_t> file_numbers;
  std::vector<int64_t> file_num_layers;  // one number, or ResNet's four

  int32_t size() const { return static_cast<int32_t>(ops.size()); }
  const DistinctOp& at(int32_t position) const { return distinct[ops[position]]; }
  double state_factor() const { return 1 + gradient_factor + master_factor + optimizer_factor; }
  int64_t parameters() const;

  // --- Derived by Finish ---
  std::vector<int32_t> layer_starts;  // positions of ops with starts_layer, ascending
  std::string hash;                   // 32 hex digits over all that costs and checks depend on

  // Whether [first, first + count) may be a stage: no skip tensor passes over the whole of it. O(1).
  bool SkipsAllowStage(int32_t first, int32_t count) const {
    return first == 0 || first + count >= size() || skip_reach_[first] < first + count;
  }
  // The smallest position at which the same `count` ops stand in the same order, as far as the segments tell: costs of stages
  // there and here are equal but for their place in the pipeline. O(segments).
  int32_t CanonicalFirst(int32_t first, int32_t count) const;
  // Where a distinct op stands, ascending.
  std::span<const int32_t> PlacesOf(uint16_t op) const {
    return std::span(places_).subspan(places_begin_[op], places_begin_[op + 1] - places_begin_[op]);
  }
  // The first place of each distinct op in [first, last), ascending. Skips repeats, so O(what is not in segments + periods).
  void FirstPlaces(int32_t first, int32_t last, std::vector<int32_t>* places) const;

  // Computes what is derived. INVALID_ARGUMENT lists what does not fit: ids out of range, duplicate names, segments that do not
  // repeat or overlap, skips backwards, tied weights of ops that are not there, more than a million ops, more than 65535 distinct
  // ones.
  Status Finish();

 private:
  std::vector<int32_t> places_, places_begin_;  // of all distinct ops, one after the other
  std::vector<int32_t> previous_;               // the place before this one that has the same op, or -1
  std::vector<int32_t> skip_reach_;             // of position i: the last consumer of what a producer before i gives
};

// "gpt:350m|1.3b|2.6b|6.7b|13b", "gpt-layers:N" (1 to 4096), "t5:770m|3b|6b|11b|22b", "wresnet:500m|1b|2b|4b|6.8b|13b".
// INVALID_ARGUMENT names what is allowed.
StatusOr<OpList> PublishedOpList(std::string_view name);
// All names; gpt-layers with N.
std::vector<std::string> PublishedOpListNames();
// The list that a plan file means. `num_layers` matters for scaled-depth GPT only, and is checked for the others.
StatusOr<OpList> OpListOfFile(std::string_view model_name, std::string_view model_size, const std::vector<int64_t>& num_layers);

struct GraphOpListOptions {
  std::string name;           // empty: the graph's
  std::string profile_model;  // empty: the name
  double master_factor = 0;   // 2 for half precision with fp32 copies of the weights
  double optimizer_factor = 2;
};
// Ops with the same body and shapes become one distinct op, named as the first of them. Repeats become segments. FLOPs,
// parameters and activation bytes are the graph's; inputs and outputs include the values that pass by on their way to later ops.
// INVALID_ARGUMENT if the graph is empty or too large.
StatusOr<OpList> OpListOfGraph(const model::Graph& graph, const GraphOpListOptions& options = {});

}  // namespace tidepool::plan
