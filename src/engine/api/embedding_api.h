// What a model says about texts without writing one: embeddings, classes, and scores of tokens that may follow.
#pragma once

#include "engine/api/context.h"

namespace sluice::engine {

net::Task<> embeddings(ApiCall& call);
net::Task<> encode(ApiCall& call);
net::Task<> score(ApiCall& call);
// Of a classifier: the label and probabilities of each text, or natively its scores. Else 400.
net::Task<> classify(ApiCall& call);
net::Task<> classify_native(ApiCall& call);
// Of a model with a reranker's template. Else 400.
net::Task<> rerank(ApiCall& call);

}  // namespace sluice::engine
