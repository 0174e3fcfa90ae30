#include "device/emulated/spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "base/units.h"

namespace tidepool::device::emulated {
namespace {

using ::testing::HasSubstr;

TEST(Spec, DefaultsAreOneFunctionalDeviceInRealTime) {
  const Spec spec = ParseSpec("emulated:h200").value();
  EXPECT_EQ(spec.bundle, "h200");
  EXPECT_EQ(spec.count, 1);
  EXPECT_TRUE(spec.functional);
  EXPECT_FALSE(spec.virtual_clock);
  EXPECT_EQ(spec.capacity_bytes, 0);
  EXPECT_EQ(spec.emulation.sharing, Sharing::kFifo);
  EXPECT_EQ(spec.emulation.jitter, Jitter::kNone);
  EXPECT_FALSE(spec.emulation.warm_up);
}

TEST(Spec, ReadsEveryKey) {
  const Spec spec = ParseSpec(
                        "emulated:./a/b.x/p100-cudnnx8,mode=timing,clock=virtual,capacity=2GiB,seed=7,jitter=lognormal,warmup=on,"
                        "share=round-robin,quantum=5ms,switch=10us,spin=50us,pcie-group=4,collective=tree")
                        .value();
  EXPECT_EQ(spec.bundle, "./a/b.x/p100-cudnn");
  EXPECT_EQ(spec.count, 8);
  EXPECT_EQ(spec.emulation.topology.devices_per_node, 8);
  EXPECT_EQ(spec.emulation.topology.devices_per_switch, 4);
  EXPECT_FALSE(spec.functional);
  EXPECT_TRUE(spec.virtual_clock);
  EXPECT_EQ(spec.capacity_bytes, 2 * kGiB);
  EXPECT_EQ(spec.seed, 7u);
  EXPECT_EQ(spec.emulation.jitter, Jitter::kLognormal);
  EXPECT_TRUE(spec.emulation.warm_up);
  EXPECT_EQ(spec.emulation.sharing, Sharing::kRoundRobin);
  EXPECT_EQ(spec.emulation.quantum_ns, 5'000'000);
  EXPECT_EQ(spec.emulation.switch_ns, 10'000);
  EXPECT_EQ(spec.spin_ns, 50'000);
  EXPECT_EQ(spec.emulation.algorithm, CollectiveAlgorithm::kTree);
}

TEST(Spec, AnXWithinTheNameIsNoNumberOfDevices) {
  EXPECT_EQ(ParseSpec("emulated:rtx4090ti").value().bundle, "rtx4090ti");
  EXPECT_EQ(ParseSpec("emulated:box").value().bundle, "box");
  EXPECT_EQ(ParseSpec("emulated:rtx").value().count, 1);
}

TEST(Spec, ErrorsNameThePartTheValueAndWhatIsAllowed) {
  const auto message = [](const char* name) {
    const auto spec = ParseSpec(name);
    EXPECT_EQ(spec.status().code(), StatusCode::kInvalidArgument) << name;
    return MessageOf(spec.status());
  };
  EXPECT_THAT(message("host"), HasSubstr("'host' does not begin with 'emulated:'"));
  EXPECT_THAT(message("emulated:"), HasSubstr("names no profile; allowed: emulated:PROFILE[xCOUNT]"));
  EXPECT_THAT(message("emulated:x8"), HasSubstr("names no profile"));
  EXPECT_THAT(message("emulated:h200x0"), HasSubstr("the number of devices is '0'; allowed: 1 to 64"));
  EXPECT_THAT(message("emulated:h200x65"), HasSubstr("'65'; allowed: 1 to 64"));
  EXPECT_THAT(message("emulated:h200x99999999999"), HasSubstr("allowed: 1 to 64"));
  EXPECT_THAT(message("emulated:h200,mode=fast"), HasSubstr("mode is 'fast'; allowed: timing, functional"));
  EXPECT_THAT(message("emulated:h200,speed=2"), HasSubstr("speed is unknown; allowed: mode, clock, capacity"));
  EXPECT_THAT(message("emulated:h200,mode"), HasSubstr("'mode' is no key=value"));
  EXPECT_THAT(message("emulated:h200,"), HasSubstr("'' is no key=value"));
  EXPECT_THAT(message("emulated:h200,seed=1,seed=2"), HasSubstr("'seed' stands twice"));
  EXPECT_THAT(message("emulated:h200,seed=-1"), HasSubstr("seed is '-1'"));
  EXPECT_THAT(message("emulated:h200,capacity=0"), HasSubstr("capacity is '0'; allowed: more than 0"));
  EXPECT_THAT(message("emulated:h200,quantum=0s"), HasSubstr("quantum is '0s'; allowed:"));
  EXPECT_THAT(message("emulated:h200,pcie-group=65"), HasSubstr("allowed: 0 to 64"));
}

TEST(Spec, AnyTextIsReadOrRefused) {
  const std::string seed = "emulated:h200x8,mode=timing,clock=virtual,capacity=2GiB,seed=7,quantum=5ms";
  using namespace std::string_literals;
  const std::string letters = "emulatd:h20x8,=.-\0\xff iGB"s;
  std::mt19937 random(3);
  for (int i = 0; i < 20'000; ++i) {
    std::string text = seed;
    for (int edits = static_cast<int>(random() % 4) + 1; edits > 0; --edits) {
      const size_t at = random() % text.size();
      switch (random() % 3) {
        case 0: text[at] = letters[random() % letters.size()]; break;
        case 1: text.insert(at, 1, letters[random() % letters.size()]); break;
        default: text.erase(at, 1 + random() % 5);
      }
      if (text.empty()) text = "e";
    }
    const auto spec = ParseSpec(text);
    if (!spec.ok()) {
      EXPECT_EQ(spec.status().code(), StatusCode::kInvalidArgument);
      continue;
    }
    EXPECT_GE(spec->count, 1);
    EXPECT_LE(spec->count, kMostDevices);
    EXPECT_FALSE(spec->bundle.empty());
    EXPECT_GT(spec->emulation.quantum_ns, 0);
  }
}

}  // namespace
}  // namespace tidepool::device::emulated
