// Two ways to the same records; which one is taken can change between reads. Internal to hybrid.cc and real_time.cc: caches are
// filled past the storage model, and measured behind it.
#pragma once

#include <atomic>
#include <vector>

#include "data/record_source.h"

namespace tidepool::data::stalls {

// Thread-safe.
class SwitchSource final : public RecordSourceWrapper {
 public:
  // Both outlive it.
  SwitchSource(const RecordSource* direct, const RecordSource* paced) : RecordSourceWrapper(direct), paced_(*paced) {}
  void SetPaced(bool paced) { paced_now_ = paced; }
  StatusOr<RecordView> Read(int64_t record) const override { return paced_now_ ? paced_.Read(record) : base().Read(record); }
  Status ReadGroup(int64_t record, std::vector<RecordView>* views) const override {
    return paced_now_ ? paced_.ReadGroup(record, views) : base().ReadGroup(record, views);
  }
  void WillNeed(int64_t record) const override { paced_now_ ? paced_.WillNeed(record) : base().WillNeed(record); }
  void WontNeed(int64_t record) const override { paced_now_ ? paced_.WontNeed(record) : base().WontNeed(record); }

 private:
  const RecordSource& paced_;
  std::atomic<bool> paced_now_ = false;
};

}  // namespace tidepool::data::stalls
