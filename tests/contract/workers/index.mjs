export { Vectorize as default } from "headrace/worker";
