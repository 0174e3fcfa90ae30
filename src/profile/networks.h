// What is known of well-known networks without their graphs: parameters and FLOPs, for the check of measured tables and for
// estimates of whole networks.
#pragma once

#include <span>
#include <string_view>

#include "base/dtype.h"
#include "profile/bundle.h"
#include "profile/lookup.h"

namespace tidepool::profile {

// Counts are per sample at `image` pixels a side; a multiply and an add are two FLOPs, of convolutions and matrix products.
struct KnownNetwork {
  std::string_view name;
  int32_t image = 224;
  double parameters = 0;
  double forward_flops = 0;
  // Of forward_flops: stride-1 convolutions of 3x3 or larger that are not grouped. Winograd's algorithm F(2x2, 3x3) (Lavin and
  // Gray, 2016) does them with 2.25 times fewer multiplications, so hardware may exceed its peak by that much on them.
  double winograd_flops = 0;
  double first_conv_flops = 0;  // of the first convolution, whose input needs no gradient
  double output_elements = 0;   // of all layers together
  double layers = 0;            // each at least one kernel
};

// Counted from the layer shapes of torchvision 0.14's models.
std::span<const KnownNetwork> KnownNetworks();
// Null if the table has no such network.
const KnownNetwork* FindNetwork(std::string_view name);

// FLOPs of one sample. A backward pass is twice the forward pass but for the first convolution; a step is both; the optimizer
// is none (it is bound by memory).
double FlopsPerSample(const KnownNetwork& network, Phase phase);
// The least arithmetic that the fastest known algorithm needs for them.
double LeastFlopsPerSample(const KnownNetwork& network, Phase phase);

// For the roofline: each layer's output is written once and read once per pass, weights are read once per pass.
OpCost CostOf(const KnownNetwork& network, Phase phase, DType dtype);

}  // namespace tidepool::profile
