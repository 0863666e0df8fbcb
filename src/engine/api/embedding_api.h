// What a model says about texts without writing one: embeddings, and scores of tokens that may follow.
#pragma once

#include "engine/api/context.h"

namespace sluice::engine {

net::Task<> embeddings(ApiCall& call);
net::Task<> encode(ApiCall& call);
net::Task<> score(ApiCall& call);
// These need a head that decoders do not have: 400.
net::Task<> classify(ApiCall& call);
net::Task<> rerank(ApiCall& call);

}  // namespace sluice::engine
