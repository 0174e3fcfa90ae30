// One cache over the memory of several nodes (the partitioned cache of CoorDL: Mohan et al., VLDB 2021).
//
// Each record belongs to one node, which follows from the seed and the record's group: there is no directory. A node keeps its
// own records in its memory, as far as its budget goes, and what is left of the budget keeps records of others. Who needs a
// record that it does not have asks the owner; the owner gives it from memory, or reads it and keeps it as long as it has room,
// or says that it does not have it. Then, or if the owner is dead, slow or wrong, the record comes from storage, which every node
// can read.
//
// With n nodes that each keep the share c of all records (c <= 1/n), once warm: c of the reads are hits in local memory, (n - 1)
// c come from other nodes, 1 - n c from storage. With c >= 1/n: c and 1 - c, and storage is not read any more.
//
// Accounts: each Read of a record that exists counts once in local_hits, remote_hits, storage, joined or failed.
#pragma once

#include <absl/time/time.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "data/cache.h"
#include "data/partition_peer.h"
#include "data/partition_server.h"
#include "data/record_source.h"

namespace tidepool::data {

// The node that keeps the group whose first record is `unit`. The same on every machine; part of the protocol.
uint32_t PartitionOwner(uint64_t seed, int64_t unit, uint32_t nodes);

struct PartitionOptions {
  uint32_t nodes = 1, node = 0;
  uint64_t seed = 0;
  int64_t budget_bytes = 0;  // of this node, for its own records and those of others together
  // Bytes of this node's own records; -1: adds up their sizes, which asks the source about each.
  int64_t own_bytes = -1;
  CacheKind kind = CacheKind::kMinio;             // of its own records
  CacheKind spare_kind = CacheKind::kMinio;       // of the others'
  absl::Duration wait_limit = absl::Seconds(60);  // for another thread of this node that reads the same record

  std::string listen = "127.0.0.1:0";
  std::string key;    // of all nodes alike; empty: none
  bool open = false;  // without a key also on other addresses than loopback
  int max_connections = 64;
  int connections_per_peer = 4;
  absl::Duration request_limit = absl::Milliseconds(500);
  int64_t max_record_bytes = int64_t{256} << 20;
  PeerHealth::Options health;

  Status Validate() const;
};

struct PartitionStats {
  // Reads of this node by where the record came from.
  int64_t local_hits = 0, remote_hits = 0, storage = 0;
  int64_t joined = 0;  // from whatever another thread of this node was getting it from
  int64_t failed = 0;
  // Why records of other nodes were read from storage.
  int64_t not_kept = 0;     // the owner does not have it
  int64_t peer_failed = 0;  // the owner is down, slow or wrong
  int64_t remote_bytes = 0;
  CacheStats own, others;
  PartitionServerStats server;
  std::vector<PeerStats> peers;  // by node; empty for this one

  int64_t reads() const { return local_hits + remote_hits + storage + joined + failed; }
};

// Thread-safe.
class PartitionedCache : public RecordSourceWrapper {
 public:
  // Starts to answer others. `base` outlives it. All nodes have the same records in the same groups.
  static StatusOr<std::unique_ptr<PartitionedCache>> Create(const RecordSource* base, PartitionOptions options);
  ~PartitionedCache() override;

  // Where the nodes listen, by number; that of this node is ignored. Nothing is sent yet. Until this is called, and for nodes
  // with an empty address, records of others come from storage. Call it at most once, before other threads read.
  Status SetPeers(const std::vector<std::string>& addresses);
  const std::string& address() const { return server_->address(); }

  StatusOr<RecordView> Read(int64_t record) const override;
  Status ReadGroup(int64_t record, std::vector<RecordView>* views) const override;
  void WillNeed(int64_t record) const override;
  void WontNeed(int64_t record) const override;

  // Reads what the budget still has room for: this node's own records, then those of others. In the order of the records, so that
  // disks can stream. Goes on after records that cannot be read. DEADLINE_EXCEEDED if time is up, CANCELLED if `cancelled` says
  // so.
  Status Fill(absl::Time deadline, const std::function<bool()>& cancelled = nullptr) const;

  // Closes connections to other nodes that no read uses, so that they see who still needs them (PartitionServerStats). Later
  // reads make new ones.
  void CloseIdleConnections() const;

  uint32_t OwnerOf(int64_t record) const { return PartitionOwner(options_.seed, base().Group(record).begin, options_.nodes); }
  PartitionStats stats() const;

 private:
  class RemoteSource;

  PartitionedCache(const RecordSource* base, PartitionOptions options);
  Status Init();
  PartitionServer::Answer AnswerPeer(int64_t record) const;
  bool IsOwn(int64_t record) const { return OwnerOf(record) == options_.node; }
  bool InRange(int64_t record) const { return record >= 0 && record < size(); }

  const PartitionOptions options_;
  PartitionIdentity identity_;
  std::unique_ptr<Cache> own_;
  std::unique_ptr<RemoteSource> remote_;
  std::unique_ptr<Cache> others_;
  mutable std::atomic<int64_t> own_hits_{0}, own_storage_{0}, own_joined_{0}, own_failed_{0};
  std::unique_ptr<PartitionServer> server_;  // last: it stops before what it uses goes
};

}  // namespace tidepool::data
