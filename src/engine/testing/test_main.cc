// The allocator and the thread settings come before the first test.
#include <gtest/gtest.h>

#include "engine/runtime.h"

namespace tidepool::engine {
namespace {

class RuntimeEnvironment final : public ::testing::Environment {
 public:
  void SetUp() override {
    const Status status = InitRuntime({.threads = 2});
    ASSERT_TRUE(status.ok()) << status;
  }
};

const auto* const kEnvironment = ::testing::AddGlobalTestEnvironment(new RuntimeEnvironment);

}  // namespace
}  // namespace tidepool::engine
