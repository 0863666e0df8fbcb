// Whether the weights of one checkpoint can take the place of another's.
#pragma once

#include <string>

#include "models/config.h"

namespace sluice::models {

// The first thing in which `other` is computed otherwise than `own`, by config.json's name where it has one; empty:
// nothing. What clients see alone may differ: a classifier's labels, the ends of a text, sampling defaults, and how
// many positions a model says it was made for, of which fine-tuned checkpoints of one model say different things.
std::string difference(const ModelConfig& own, const ModelConfig& other);

}  // namespace sluice::models
