// Which copies of a layer's experts there are, and where.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "moe/eplb.h"
#include "parallel/topology.h"

namespace sluice::moe {

// --ep-dispatch-algorithm: the copy of an expert that a token goes to.
enum class CopyChoice : uint8_t {
  kStatic,   // one that the token's rank has, else one of the others, which are shared out among the ranks
  kDynamic,  // any of them, at random
};

// As the options say it.
struct ExpertPlacement {
  int64_t redundant = 0;             // copies beyond one of each expert of a layer (--ep-num-redundant-experts)
  std::string location = "trivial";  // or JSON: {"physical_to_logical_map": ...} or {"logical_count": ...}
  std::string algorithm = "auto";    // that makes a map of counts (--eplb-algorithm)
  CopyChoice choice = CopyChoice::kStatic;
  int64_t nodes = 1;
  bool moves = false;  // experts are moved while the rank serves (--enable-eplb)

  bool trivial() const { return redundant == 0 && location == "trivial" && !moves; }
};

// Changed by models/rebalancer.h alone, between steps. Layers are those of the model; of a dense one nothing is read.
struct ExpertMap {
  int64_t logical = 0;
  int64_t physical = 0;
  PhysicalToLogical location;
  CopyChoice choice = CopyChoice::kStatic;
  bool moves = false;

  // Most copies that an expert has in any layer, or will ever have.
  int64_t most_copies() const;
  // The copies of each expert, ascending.
  std::vector<std::vector<int32_t>> copies(int64_t layer) const;
};

struct ExpertSizes {
  int64_t layers = 0;  // of the model
  int64_t experts = 0;
  int64_t groups = 1;
  int64_t ranks = 1;  // that divide the experts
};

// Balanced for `loads` [layers][experts] by the placement's algorithm. kInvalidArgument says which number does not fit.
Result<PhysicalToLogical> place_experts(const ExpertLoads& loads, const ExpertPlacement& placement,
                                        const ExpertSizes& sizes);

// kBadOption names the flag: a map of another shape, an expert that is nowhere, numbers that do not divide.
Result<ExpertMap> make_expert_map(const ExpertPlacement& placement, const ExpertSizes& sizes);

// For CopyChoice::kStatic: the copy of each expert that tokens of `rank` go to. All ranks come to the same choices.
std::vector<int32_t> static_copies(const ExpertMap& map, int64_t layer, parallel::Place rank);

}  // namespace sluice::moe
