// What the repository offers, in the form that serving needs, and the check of requests against it. Immutable once made.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "model/graph.h"
#include "model/repository.h"
#include "serve/server.h"
#include "serve/types.h"

namespace tidepool::serve {

// One version of one served name.
struct CatalogModel {
  ModelId id;
  std::string name;
  std::string lease_name;  // "resnet18-a", or "resnet18-a:3" for a version that is not the highest
  int64_t version = 0;
  std::string spec, weights_path;
  std::string identity;  // changes when anything does that makes a loaded copy stale
  model::ServingConfig serving;
  std::shared_ptr<const model::Graph> graph;  // null if not servable
  std::vector<TensorMetadata> inputs, outputs;
  std::vector<int64_t> input_sample_bytes, output_sample_bytes;
  int64_t weight_bytes = 0;
  int64_t pages = 0, workspace_pages = 0, least_workspace_pages = 0;
  Status status;  // why it cannot be served
};

struct CatalogEntry {
  std::string name, spec;
  Status status;  // of the highest version, or of the folder
  std::map<int64_t, std::shared_ptr<const CatalogModel>> versions;
};

class Catalog {
 public:
  // Models that `previous` (may be null) has with the same identity keep their id; others get ids from `*next_id`.
  static StatusOr<std::shared_ptr<const Catalog>> Scan(const std::string& repository, int64_t page_bytes, const Catalog* previous,
                                                       uint32_t* next_id);

  const std::map<std::string, CatalogEntry>& entries() const { return entries_; }
  // NOT_FOUND names the nearest model, or the versions there are; a model that cannot be served gives the reason.
  StatusOr<std::shared_ptr<const CatalogModel>> Find(const std::string& name, const std::string& version) const;

 private:
  std::map<std::string, CatalogEntry> entries_;
};

// A request that fits its model.
struct CheckedRequest {
  int batch = 0;
  std::vector<size_t> inputs;   // by graph input: index into the request's inputs
  std::vector<size_t> outputs;  // indices of graph outputs to return, in the order asked for
  int64_t slab_bytes = 0;
};

// INVALID_ARGUMENT lists every fault: what was seen and what is allowed.
StatusOr<CheckedRequest> CheckRequest(const CatalogModel& model, const InferRequest& request);

}  // namespace tidepool::serve
