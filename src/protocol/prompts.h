// A member that is one prompt or several: a string, a list of strings, a list of token ids, or a list of such lists.
#pragma once

#include <string>
#include <vector>

#include "protocol/fields.h"
#include "protocol/generate_body.h"

namespace sluice::protocol {

// Empty after an error, which is in `fields`.
std::vector<Prompt> read_prompts(Fields& fields, const std::string& name);

}  // namespace sluice::protocol
